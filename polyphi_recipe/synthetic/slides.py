"""Slides drawn with Pillow: a title, points below it, and optionally a chart next to them.

>>> slide = draw(scene, "Train", ("red hat", "two birds"))
>>> slide.title, slide.points[1]
('Train', 'two birds')
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

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
    image = scene.sheet(size, paper)
    pen = images.Pen(image)
    if band == "filled":
        pen.rectangle((0, 0), (size[0], 25), accent)
    elif band == "ruled":
        pen.line([(6, 25), (size[0] - 6, 25)], accent, width=2)
    face = images.fitting(name, title, size[0] - 14, 19)
    x = (8, 13) if scene.rng.random() < 0.6 else (size[0] // 2, 13)
    anchor = "lm" if x[0] == 8 else "mm"
    pen.text(x, title, face, WHITE if band == "filled" else accent, anchor)
    step = (SIDE - 30) / max(3, len(points))
    smaller = images.fitting(name, max(points, key=len), SIDE - 24, 15)
    for i, point in enumerate(points):
        y = 30 + (i + 0.5) * step
        pen.dot((10.5, y), 2.5, accent)
        pen.text((19, y), point, smaller, (25, 25, 25), anchor="lm")
    if chart is not None:
        right, bottom = images.place(image, (size[0] - 2, SIDE - 1), (0, 0))
        image.paste(chart, (right - chart.width, bottom - chart.height))
    return Slide(image, title, tuple(points))
