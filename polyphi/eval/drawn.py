"""Pictures of our own drawing, as PNG bytes: what stand-ins of benchmarks show.

>>> shapes(("circle", "red"), ("square", "blue"))
"""

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw

SIDE = 112
"""Of a shape's square, in pixels."""


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def cell(picture: bytes) -> dict[str, bytes | None]:
    """A picture as the Hub's parquet files keep it."""
    return {"bytes": picture, "path": None}


def shape(kind: str, colour: str, left: int = 0, picture: Image.Image | None = None) -> Image.Image:
    """A circle, square or triangle, on white or on a picture of which it takes a square from `left` on."""
    picture = picture or Image.new("RGB", (SIDE, SIDE), "white")
    pen, near, far = ImageDraw.Draw(picture), 20, SIDE - 20
    if kind == "circle":
        pen.ellipse((left + near, near, left + far, far), fill=colour)
    elif kind == "square":
        pen.rectangle((left + near, near, left + far, far), fill=colour)
    else:
        pen.polygon([(left + near, far), (left + far, far), (left + SIDE // 2, near)], fill=colour)
    return picture


def shapes(*things: tuple[str, str]) -> bytes:
    """Shapes of (kind, colour) in a row."""
    picture = Image.new("RGB", (SIDE * len(things), SIDE), "white")
    for place, (kind, colour) in enumerate(things):
        shape(kind, colour, SIDE * place, picture)
    return png(picture)


def bars(heights: Mapping[str, int]) -> bytes:
    """A chart of bars by colour, heights 1 to 9, each with its value above and its colour below."""
    picture = Image.new("RGB", (30 + 95 * len(heights), 240), "white")
    pen = ImageDraw.Draw(picture)
    for place, (colour, height) in enumerate(heights.items()):
        left = 30 + 95 * place
        pen.rectangle((left, 220 - 20 * height, left + 60, 220), fill=colour)
        pen.text((left + 24, 205 - 20 * height), str(height), fill="black", font_size=14)
        pen.text((left + 10, 222), colour, fill="black", font_size=14)
    return png(picture)


def page(*lines: str) -> bytes:
    """Lines of text."""
    picture = Image.new("RGB", (260, 16 + 26 * len(lines)), "white")
    pen = ImageDraw.Draw(picture)
    for place, line in enumerate(lines):
        pen.text((10, 8 + 26 * place), line, fill="black", font_size=18)
    return png(picture)


def triangle(left: str, right: str, below: str) -> bytes:
    """A triangle with its sides' lengths written beside them."""
    picture = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(picture)
    pen.polygon([(30, 180), (194, 180), (112, 40)], outline="black")
    for spot, text in (((45, 95), left), ((165, 95), right), ((105, 190), below)):
        pen.text(spot, text, fill="black", font_size=18)
    return png(picture)
