"""Drawing with Pillow for training images: backgrounds, inks, shapes, scanned digits and text; the held-out parts.

>>> image = sheet((112, 112), (255, 255, 255))
>>> stamp_shape(image, "star", (20, 20), 60, (220, 30, 30))
>>> png(image)[:4]
b'\\x89PNG'

Held out for the test split are scans (by number), font files, numbers, rotations of a shape in a colour, and stamps
(stamps.py). scenes.py makes random choices and samples with these functions.
"""

import hashlib
import io
import math
import random
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from polyphi.processing.label_grids import LabelledBox
from polyphi_recipe.text import lexicon

RGB = tuple[int, int, int]
SIDE = 112  # pixels: one crop of the nano size
PALE: tuple[RGB, ...] = (
    (255, 255, 255),
    (246, 244, 236),
    (228, 232, 236),
    (208, 212, 208),
    (250, 236, 220),
    (222, 236, 250),
)
PAPERS: tuple[RGB, ...] = (*PALE, (70, 74, 82))
"""Background colours: pale ones and one dark."""


def bucket(key: str, buckets: int) -> int:
    """Return a stable number from 0 to `buckets` - 1 for a key (Python's `hash` changes between processes)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % buckets


PAIRS = tuple((shape, colour) for shape in lexicon.SHAPES for colour in lexicon.COLOURS)
TURNS = (-12, -6, 0, 6, 12)
"""Rotations of shapes in degrees."""


@cache
def turns(split: str, shape: str, colour: str) -> tuple[int, ...]:
    """Return the rotations that a split uses for a shape of a colour: one of the five is held out for each pair. (Whole
    pairs can't be held out: a model that sees the colour learns that the held-out shape never has it.)"""
    test_turn = TURNS[bucket(f"turn {colour} {shape}", len(TURNS))]
    return tuple(turn for turn in TURNS if (turn == test_turn) == (split == "test"))


@cache
def numbers(split: str) -> tuple[int, ...]:
    """Return the numbers from 0 to 999 that a split may use: a quarter of those with two digits is held out, and a
    sixth of those with three."""
    return tuple(
        n
        for n in range(1000)
        if (n >= 10 and bucket(f"number {n}", 4 if n < 100 else 6) == 0) == (split == "test")
    )


FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralItalic",
    ),
    "test": ("STIXGeneralBol", "DejaVuSerif-Bold", "cmr10", "cmss10", "cmtt10", "cmb10", "Aileron"),
}
"""Font files of each split: those of matplotlib, and Aileron, Pillow's default font."""
ASCII_FONTS = {"cmr10", "cmss10", "cmtt10", "cmb10", "Aileron"}  # they lack accented letters


@cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font by name and size in pixels. Raises `ValueError` if the name is unknown."""
    if name == "Aileron":
        return ImageFont.load_default(size)  # type: ignore[return-value]
    path = _font_folder() / f"{name}.ttf"
    if not path.exists():
        raise ValueError(
            f"no font {name!r} in {path.parent}; expected one of {', '.join(sum(FONTS.values(), ()))}"
        )
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def fitting(name: str, text: str, width: float, largest: int) -> ImageFont.FreeTypeFont:
    """Return the font in the largest size, up to `largest` pixels, in which `text` is at most `width` pixels wide."""
    wide = font(name, 32).getlength(text)
    return font(name, max(7, min(largest, int(32 * width / max(wide, 1)))))


def write(
    image: Image.Image, text: str, face: ImageFont.FreeTypeFont, corner: tuple[int, int], ink: RGB
) -> None:
    """Render a line of text with the upper left corner of its ink at `corner`, and annotate each character."""
    corner = place(image, corner, measure(text, face))
    face = scaled(face, scale(image))
    left, top, _, bottom = face.getbbox(text)
    ImageDraw.Draw(image).text((corner[0] - left, corner[1] - top), text, font=face, fill=ink)
    before = 0.0
    for i, character in enumerate(text):
        after = face.getlength(text[: i + 1])
        if not character.isspace():
            annotate(
                image,
                character,
                (corner[0] - left + before, corner[1]),
                (after - before, bottom - top),
            )
        before = after


def write_line(
    image: Image.Image, text: str, face: ImageFont.FreeTypeFont, corner: tuple[int, int], ink: RGB
) -> None:
    """Render one of several lines: `corner` is its left edge and the top of the font's tallest letters, so that the
    lines of a page are evenly spaced."""
    ImageDraw.Draw(image).text(corner, text, font=face, fill=ink, anchor="la")


def measure(text: str, face: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Return (width, height) of a line's ink in pixels."""
    left, top, right, bottom = face.getbbox(text)
    return math.ceil(right - left), math.ceil(bottom - top)


def annotate(
    image: Image.Image, label: str, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    """Annotate an image with a labelled box of (width, height) pixels at `corner`, in pixels."""
    (x, y), (wide, high), (width, height) = corner, size, image.size
    box = x / width, y / height, (x + wide) / width, (y + high) / height
    image.info.setdefault("named", []).append((label, *(round(v, 3) for v in box)))


def annotations(image: Image.Image) -> list[LabelledBox]:
    """Return the labelled boxes of an image, coordinates as shares of its width and height."""
    return list(image.info.get("named", ()))


def sheet(size: tuple[int, int], paper: RGB, pixels: tuple[int, int] | None = None) -> Image.Image:
    """Return an empty image of (width, height) units, in `pixels` (width, height), by default one per unit. All
    functions that draw take units: positions are stretched to the image, things keep their aspect ratio."""
    image = Image.new("RGB", pixels or size, paper)
    if pixels is not None:
        image.info["stretch"] = pixels[0] / size[0], pixels[1] / size[1]
    return image


def stretch(image: Image.Image) -> tuple[float, float]:
    """Return the pixels per unit of an image's width and height."""
    return image.info.get("stretch", (1.0, 1.0))


def scale(image: Image.Image) -> float:
    """Return the pixels per unit of the things in an image."""
    return min(stretch(image))


def place(
    image: Image.Image, corner: tuple[float, float], size: tuple[float, float]
) -> tuple[int, int]:
    """Return the corner in pixels of a thing of (width, height) at `corner`, both in units: the thing is in the middle
    of the stretched box."""
    x, y = (
        round(at * along + extent * (along - scale(image)) / 2)
        for at, extent, along in zip(corner, size, stretch(image), strict=True)
    )
    return x, y


def scaled(face: ImageFont.FreeTypeFont, factor: float) -> ImageFont.FreeTypeFont:
    """Return a font in another size."""
    return face if factor == 1 else face.font_variant(size=max(1, round(face.size * factor)))


class Pen:
    """Draws lines, rectangles, dots and centred text in units."""

    def __init__(self, image: Image.Image) -> None:
        self._image, self._draw = image, ImageDraw.Draw(image)
        self._stretch, self._scale = stretch(image), scale(image)

    def _pixels(self, x: float, y: float) -> tuple[float, float]:
        return x * self._stretch[0], y * self._stretch[1]

    def line(
        self,
        points: Sequence[tuple[float, float]],
        fill: RGB,
        width: int = 1,
        joint: str | None = None,
    ) -> None:
        wide = max(1, round(width * self._scale))
        self._draw.line([self._pixels(*p) for p in points], fill=fill, width=wide, joint=joint)

    def rectangle(
        self, corner: tuple[float, float], opposite: tuple[float, float], fill: RGB
    ) -> None:
        self._draw.rectangle([self._pixels(*corner), self._pixels(*opposite)], fill=fill)

    def dot(self, centre: tuple[float, float], radius: float, fill: RGB) -> None:
        (x, y), r = self._pixels(*centre), radius * self._scale
        self._draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        face: ImageFont.FreeTypeFont,
        fill: RGB,
        anchor: str = "mm",
    ) -> None:
        """Write text whose anchor (as in Pillow, by default its middle) is at a point."""
        face = scaled(face, self._scale)
        self._draw.text(self._pixels(*at), text, font=face, fill=fill, anchor=anchor)

    def annotate(self, label: str, corner: tuple[float, float], size: tuple[float, float]) -> None:
        """Annotate the image with a labelled box."""
        annotate(self._image, label, self._pixels(*corner), self._pixels(*size))


def png(image: Image.Image) -> bytes:
    """Return PNG bytes; low compression, because zlib would dominate the time to write shards."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def contrast(a: RGB, b: RGB) -> float:
    """Return the difference in brightness of two colours, from 0 to 255, with luma weights."""
    return abs(0.3 * (a[0] - b[0]) + 0.59 * (a[1] - b[1]) + 0.11 * (a[2] - b[2]))


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners in the square from -1 to 1, y downwards. Circles and hearts are polygons of many corners."""
    turns = [2 * math.pi * i / 64 for i in range(64)]
    if shape == "circle":
        return [(math.cos(t), math.sin(t)) for t in turns]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        return [
            (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
            for i, r in enumerate(radii)
        ]
    if shape == "heart":
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 16,
            )
            for t in turns
        ]
    if shape == "cross":
        a, b = 0.32, 0.95
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(lexicon.SHAPES)}")


def shape_mask(shape: str, side: int, turn: int = 0) -> Image.Image:
    """Return the antialiased mask of a shape, `side` x `side` pixels, rotated by `turn` degrees. Small ones are
    cached."""
    return (_small_mask if side <= SIDE else _mask)(shape, side, turn)


def _mask(shape: str, side: int, turn: int) -> Image.Image:
    fine, angle = 4, math.radians(turn)
    c, s, r = math.cos(angle), math.sin(angle), side * fine / 2
    mask = Image.new("L", (side * fine, side * fine))
    corners = [
        (r + 0.96 * r * (x * c - y * s), r + 0.96 * r * (x * s + y * c)) for x, y in _outline(shape)
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)


_small_mask = lru_cache(4096)(_mask)


def stamp_shape(
    image: Image.Image,
    shape: str,
    corner: tuple[int, int],
    side: int,
    colour: RGB,
    *,
    turn: int = 0,
    label: str = "",
) -> None:
    """Draw a shape with its upper left corner at `corner`; its annotation is `label`, by default the shape."""
    corner, side = place(image, corner, (side, side)), round(side * scale(image))
    image.paste(colour, corner, shape_mask(shape, side, turn))
    annotate(image, label or shape, corner, (side, side))


def stamp_cutout(
    image: Image.Image, cutout: Image.Image, corner: tuple[int, int], label: str
) -> None:
    """Paste an RGBA cutout of some pixels with its upper left corner at `corner`."""
    size = cutout.width / scale(image), cutout.height / scale(image)
    corner = place(image, corner, size)
    image.paste(cutout, corner, cutout)
    annotate(image, label, corner, cutout.size)


SCANS = "scikit-learn-digits"
TEST_SCANS = 5  # one scan in five is held out; both splits have the same writers


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return (scans uint8 [1797 8 8], 255 = ink; labels int [1797]): handwritten digits from scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.clip(data.images * (255 / 16), 0, 255).astype(np.uint8), data.target


@cache
def scan_numbers(split: str, digit: int) -> tuple[int, ...]:
    """Return the indices of the scans of a digit that belong to a split."""
    return tuple(
        int(i)
        for i in np.flatnonzero(scans()[1] == digit)
        if (bucket(f"scan {i}", TEST_SCANS) == 0) == (split == "test")
    )


def scan_mask(number: int, side: int, turn: float = 0.0, strength: float = 1.0) -> Image.Image:
    """Return a scan as a mask, `side` x `side` pixels, rotated by `turn` degrees; `strength` is its opacity, up to
    1."""
    mask = Image.fromarray(scans()[0][number]).resize((side, side), Image.Resampling.BICUBIC)
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BILINEAR)
    return mask.point([int(strength * v) for v in range(256)]) if strength < 1 else mask


def stamp_scan(
    image: Image.Image, number: int, corner: tuple[int, int], side: int, ink: RGB
) -> None:
    """Draw a scan with its upper left corner at `corner`, and annotate it with its digit."""
    corner, side = place(image, corner, (side, side)), round(side * scale(image))
    image.paste(ink, corner, scan_mask(number, side))
    annotate(image, str(scans()[1][number]), corner, (side, side))


def stamp_digits(
    image: Image.Image,
    numbers: Sequence[int],
    corner: tuple[int, int],
    side: int,
    ink: RGB,
    *,
    rng: random.Random,
) -> None:
    """Draw scans side by side, 0.9 x `side` pixels apart, each with a small random vertical shift and rotation."""
    strength, factor = rng.uniform(0.75, 1.0), scale(image)
    corner = place(image, corner, (side * (0.9 * len(numbers) + 0.1), side))
    side = round(side * factor)
    for i, number in enumerate(numbers):
        mask = scan_mask(number, side, rng.uniform(-8, 8), strength)
        shift = round(factor * rng.randint(-2, 2))
        position = corner[0] + round(0.9 * side * i), corner[1] + shift
        image.paste(ink, position, mask)
        annotate(image, str(scans()[1][number]), position, (side, side))
