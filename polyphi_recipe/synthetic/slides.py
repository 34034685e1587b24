"""Slides drawn with Pillow: a title, points below it, and optionally a chart next to them.

>>> slide = draw(scene, "Train", ("red hat", "two birds"))
>>> slide.title, slide.points[1]
('Train', 'two birds')
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.images import RGB, SIDE
from polyphi_recipe.synthetic.scenes import Scene

BANDS: tuple[RGB, ...] = ((32, 56, 100), (110, 34, 40), (30, 92, 70), (70, 48, 110), (60, 60, 64))
"""Colours of titles or of the bands behind them."""
WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True)
class Slide:
    """A drawn slide with its text."""

    image: Image.Image
    title: str
    points: tuple[str, ...]


def draw(
    scene: Scene, title: str, points: Sequence[str], chart: Image.Image | None = None
) -> Slide:
    """Draw a slide of one crop, or of two side by side if there is a chart. The chart has at most `SIDE` x `SIDE` - 28
    pixels, below the title."""
    size = (SIDE, SIDE) if chart is None else (2 * SIDE, SIDE)
    accent, paper = scene.rng.choice(BANDS), scene.rng.choice(images.PALE)
    name, band = scene.font(title + "".join(points)), scene.rng.choice(("filled", "ruled", "bare"))
    image = images.sheet(size, paper)
    pen = ImageDraw.Draw(image)
    if band == "filled":
        pen.rectangle([0, 0, size[0], 25], fill=accent)
    elif band == "ruled":
        pen.line([(6, 25), (size[0] - 6, 25)], fill=accent, width=2)
    face = images.fitting(name, title, size[0] - 14, 19)
    x = (8, 13) if scene.rng.random() < 0.6 else (size[0] // 2, 13)
    anchor = "lm" if x[0] == 8 else "mm"
    pen.text(x, title, font=face, fill=WHITE if band == "filled" else accent, anchor=anchor)
    step = (SIDE - 30) / max(3, len(points))
    smaller = images.fitting(name, max(points, key=len), SIDE - 24, 15)
    for i, point in enumerate(points):
        y = 30 + (i + 0.5) * step
        pen.ellipse([8, y - 2.5, 13, y + 2.5], fill=accent)
        pen.text((19, y), point, font=smaller, fill=(25, 25, 25), anchor="lm")
    if chart is not None:
        image.paste(chart, (size[0] - chart.width - 2, SIDE - chart.height - 1))
    return Slide(image, title, tuple(points))
