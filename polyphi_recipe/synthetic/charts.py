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

from polyphi.text.lexicon import COLOUR_RGB
from polyphi_recipe.synthetic.images import RGB, SIDE, annotate, font, sheet
from polyphi_recipe.synthetic.scenes import Scene

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


def _start(scene: Scene, size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = sheet(size, scene.rng.choice(PAPERS))
    return image, ImageDraw.Draw(image)


def _write(image: Image.Image, centre: tuple[float, float], text: str, face: str) -> None:
    """Draw a short label centred at `centre`, with its annotation."""
    ImageDraw.Draw(image).text(centre, text, font=font(face, 15), fill=(20, 20, 20), anchor="mm")
    annotate(image, text, (centre[0] - 5, centre[1] - 7), (10, 14))


def _ink(scene: Scene, labels: Sequence[str]) -> list[RGB]:
    """Return a colour per mark: the label's own if it is a colour, otherwise the same for all."""
    one = scene.tint(scene.rng.choice(list(COLOUR_RGB)))
    return [scene.tint(label) if label in COLOUR_RGB else one for label in labels]


def columns(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw vertical bars, each with its value above it."""
    image, draw = _start(scene, size)
    face, lettered = scene.font("0"), [label not in COLOUR_RGB for label in labels]
    floor, step = size[1] - (20 if any(lettered) else 8), (size[0] - 12) / len(labels)
    unit, wide = (floor - 22) / LARGEST, step * scene.rng.uniform(0.5, 0.8)
    if scene.rng.random() < 0.5:
        for tick in range(3, LARGEST + 1, 3):
            draw.line([(6, floor - tick * unit), (size[0] - 6, floor - tick * unit)], fill=PALE)
    for i, (label, value, colour) in enumerate(
        zip(labels, values, _ink(scene, labels), strict=True)
    ):
        middle = 6 + (i + 0.5) * step
        top = floor - value * unit
        draw.rectangle([middle - wide / 2, top, middle + wide / 2, floor], fill=colour)
        _write(image, (middle, top - 10), str(value), face)
        if lettered[i]:
            _write(image, (middle, floor + 11), label, face)
        else:
            annotate(image, f"{label} {value}", (middle - wide / 2, top), (wide, floor - top))
    draw.line([(4, floor), (size[0] - 4, floor)], fill=GREY, width=2)
    return Chart(image, tuple(labels), tuple(values))


def rows(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw horizontal bars, each with its value at its end."""
    image, draw = _start(scene, size)
    face, lettered = scene.font("0"), [label not in COLOUR_RGB for label in labels]
    wall, step = 22 if any(lettered) else 6, (size[1] - 10) / len(labels)
    unit, high = (size[0] - wall - 22) / LARGEST, step * scene.rng.uniform(0.5, 0.8)
    for i, (label, value, colour) in enumerate(
        zip(labels, values, _ink(scene, labels), strict=True)
    ):
        middle = 5 + (i + 0.5) * step
        end = wall + value * unit
        draw.rectangle([wall, middle - high / 2, end, middle + high / 2], fill=colour)
        _write(image, (end + 10, middle), str(value), face)
        if lettered[i]:
            _write(image, (wall - 11, middle), label, face)
        else:
            annotate(image, f"{label} {value}", (wall, middle - high / 2), (end - wall, high))
    draw.line([(wall, 4), (wall, size[1] - 4)], fill=GREY, width=2)
    return Chart(image, tuple(labels), tuple(values))


def pie(
    scene: Scene, labels: Sequence[str], values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)
) -> Chart:
    """Draw a pie with slices in proportion to the values; labels are colours."""
    side = min(size) - scene.rng.randint(10, 30)
    paper = scene.rng.choice(PAPERS)
    disc = sheet((side * FINE, side * FINE), paper)
    draw, angle = ImageDraw.Draw(disc), scene.rng.uniform(0, 360)
    for value, colour in zip(values, _ink(scene, labels), strict=True):
        turn = 360 * value / sum(values)
        draw.pieslice([0, 0, side * FINE - 1, side * FINE - 1], angle, angle + turn, fill=colour)
        angle += turn
    image = sheet(size, paper)
    image.paste(disc.resize((side, side), Image.Resampling.BOX), scene.corner(size, (side, side)))
    return Chart(image, tuple(labels), tuple(values))


def line(scene: Scene, values: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> Chart:
    """Draw a line through points from left to right; its labels are the numbers of the points."""
    wide, high = size[0] * FINE, size[1] * FINE
    paper = scene.rng.choice(PAPERS)
    image = sheet((wide, high), paper)
    draw = ImageDraw.Draw(image)
    left, floor = 12 * FINE, high - 12 * FINE
    draw.line(
        [(left, 8 * FINE), (left, floor), (wide - 6 * FINE, floor)], fill=GREY, width=2 * FINE
    )
    step, unit = (wide - left - 16 * FINE) / max(1, len(values) - 1), (floor - 14 * FINE) / LARGEST
    colour = scene.tint(
        scene.rng.choice([c for c, rgb in COLOUR_RGB.items() if math.dist(rgb, paper) > 120])
    )
    points = [(left + 6 * FINE + i * step, floor - value * unit) for i, value in enumerate(values)]
    draw.line(points, fill=colour, width=3 * FINE, joint="curve")
    for x, y in points:
        draw.ellipse([x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE], fill=colour)
    labels = tuple(str(i + 1) for i in range(len(values)))
    return Chart(image.resize(size, Image.Resampling.BOX), labels, tuple(values))
