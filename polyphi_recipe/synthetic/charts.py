"""Charts drawn with Pillow, each with its labels and values, so that questions about it have exact answers.

>>> chart = columns(scene, ("red", "blue"), (3, 8))
>>> chart.highest(), chart.value("red"), chart.table()
('blue', 3, 'red 3, blue 8')

Labels are colours of the lexicon (the marks have these colours) or letters written next to the marks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from polyphi_recipe.synthetic.images import RGB, SIDE, Pen, font, place, scale, sheet
from polyphi_recipe.synthetic.scenes import Scene
from polyphi_recipe.text.lexicon import COLOUR_RGB

PAPERS: tuple[RGB, ...] = ((255, 255, 255), (246, 244, 236), (236, 240, 246))
GREY: RGB = (90, 90, 90)
PALE: RGB = (205, 205, 205)
LARGEST = 9  # values go from 1 to 9
FINE = 3  # supersampling factor of pies and lines, for smooth edges


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its data: `values[i]` belongs to `labels[i]`."""

    image: Image.Image
    labels: tuple[str, ...]
    values: tuple[int, ...]

    def highest(self) -> str:
        return self.labels[self.values.index(max(self.values))]

    def lowest(self) -> str:
        return self.labels[self.values.index(min(self.values))]

    def value(self, label: str) -> int:
        return self.values[self.labels.index(label)]

    def table(self) -> str:
        """Return label and value of every mark, from left to right or from top to bottom."""
        return ", ".join(
            f"{label} {value}" for label, value in zip(self.labels, self.values, strict=True)
        )


def _start(scene: Scene, size: tuple[int, int]) -> tuple[Image.Image, Pen]:
    image = scene.sheet(size, scene.rng.choice(PAPERS))
    return image, Pen(image)


def _write(pen: Pen, centre: tuple[float, float], text: str, face: str) -> None:
    """Draw a short label centred at `centre`, with its annotation."""
    pen.text(centre, text, font(face, 15), (20, 20, 20))
    pen.annotate(text, (centre[0] - 5, centre[1] - 7), (10, 14))


def _ink(scene: Scene, labels: Sequence[str]) -> list[RGB]:
    """Return a colour per mark: the label's own if it is a colour, otherwise the same for all."""
    one = scene.tint(scene.rng.choice(list(COLOUR_RGB)))
    return [scene.tint(label) if label in COLOUR_RGB else one for label in labels]


def columns(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw vertical bars, each with its value above it."""
    image, pen = _start(scene, size)
    face, lettered = scene.font("0"), [label not in COLOUR_RGB for label in labels]
    floor, step = size[1] - (20 if any(lettered) else 8), (size[0] - 12) / len(labels)
    unit, wide = (floor - 22) / LARGEST, step * scene.rng.uniform(0.5, 0.8)
    if scene.rng.random() < 0.5:
        for tick in range(3, LARGEST + 1, 3):
            pen.line([(6, floor - tick * unit), (size[0] - 6, floor - tick * unit)], PALE)
    for i, (label, value, colour) in enumerate(
        zip(labels, values, _ink(scene, labels), strict=True)
    ):
        middle = 6 + (i + 0.5) * step
        top = floor - value * unit
        pen.rectangle((middle - wide / 2, top), (middle + wide / 2, floor), colour)
        _write(pen, (middle, top - 10), str(value), face)
        if lettered[i]:
            _write(pen, (middle, floor + 11), label, face)
        else:
            pen.annotate(f"{label} {value}", (middle - wide / 2, top), (wide, floor - top))
    pen.line([(4, floor), (size[0] - 4, floor)], GREY, width=2)
    return Chart(image, tuple(labels), tuple(values))


def rows(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw horizontal bars, each with its value at its end."""
    image, pen = _start(scene, size)
    face, lettered = scene.font("0"), [label not in COLOUR_RGB for label in labels]
    wall, step = 22 if any(lettered) else 6, (size[1] - 10) / len(labels)
    unit, high = (size[0] - wall - 22) / LARGEST, step * scene.rng.uniform(0.5, 0.8)
    for i, (label, value, colour) in enumerate(
        zip(labels, values, _ink(scene, labels), strict=True)
    ):
        middle = 5 + (i + 0.5) * step
        end = wall + value * unit
        pen.rectangle((wall, middle - high / 2), (end, middle + high / 2), colour)
        _write(pen, (end + 10, middle), str(value), face)
        if lettered[i]:
            _write(pen, (wall - 11, middle), label, face)
        else:
            pen.annotate(f"{label} {value}", (wall, middle - high / 2), (end - wall, high))
    pen.line([(wall, 4), (wall, size[1] - 4)], GREY, width=2)
    return Chart(image, tuple(labels), tuple(values))


def pie(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw a pie with slices in proportion to the values; labels are colours."""
    units = min(size) - scene.rng.randint(10, 30)
    paper = scene.rng.choice(PAPERS)
    image = scene.sheet(size, paper)
    side = round(units * scale(image))
    disc = sheet((side * FINE, side * FINE), paper)
    draw, angle = ImageDraw.Draw(disc), scene.rng.uniform(0, 360)
    for value, colour in zip(values, _ink(scene, labels), strict=True):
        turn = 360 * value / sum(values)
        draw.pieslice([0, 0, side * FINE - 1, side * FINE - 1], angle, angle + turn, fill=colour)
        angle += turn
    corner = place(image, scene.corner(size, (units, units)), (units, units))
    image.paste(disc.resize((side, side), Image.Resampling.BOX), corner)
    return Chart(image, tuple(labels), tuple(values))


def line(scene: Scene, values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> Chart:
    """Draw a line through points from left to right; its labels are the numbers of the points."""
    paper = scene.rng.choice(PAPERS)
    image = scene.sheet(size, paper)
    large = sheet(size, paper, (FINE * image.width, FINE * image.height))
    pen, left, floor = Pen(large), 12, size[1] - 12
    pen.line([(left, 8), (left, floor), (size[0] - 6, floor)], GREY, width=2)
    step, unit = (size[0] - left - 16) / max(1, len(values) - 1), (floor - 14) / LARGEST
    colour = scene.tint(
        scene.rng.choice([c for c, rgb in COLOUR_RGB.items() if math.dist(rgb, paper) > 120])
    )
    points = [(left + 6 + i * step, floor - value * unit) for i, value in enumerate(values)]
    pen.line(points, colour, width=3, joint="curve")
    for point in points:
        pen.dot(point, 4, colour)
    labels = tuple(str(i + 1) for i in range(len(values)))
    return Chart(large.resize(image.size, Image.Resampling.BOX), labels, tuple(values))
