"""Tables drawn with Pillow, each with its cells, so that questions about it have exact answers.

>>> table = draw(scene, ("A", "B"), ("cat", "dog"), ((3, 5), (8, 2)))
>>> table.cell("dog", "A"), table.highest("B"), table.text()
(8, 'cat', 'A B; cat 3 5; dog 8 2')
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.images import RGB, SIDE
from polyphi_recipe.synthetic.scenes import Scene

RULE: RGB = (130, 130, 130)
HEADER_COLOURS: tuple[RGB, ...] = (
    (214, 220, 232),
    (224, 214, 196),
    (206, 226, 208),
    (226, 226, 226),
)
"""Backgrounds of the header row."""


@dataclass(frozen=True)
class DrawnTable:
    """A drawn table with its data: `cells[i][j]` belongs to `rows[i]` and `columns[j]`."""

    image: Image.Image
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]

    def cell(self, row: str, column: str) -> int:
        return self.cells[self.rows.index(row)][self.columns.index(column)]

    def highest(self, column: str) -> str:
        """Return the row with the largest number in a column."""
        return max(self.rows, key=lambda row: self.cell(row, column))

    def text(self) -> str:
        """Return the names of the columns, then each row, from top to bottom."""
        rows = (
            " ".join((row, *map(str, cells)))
            for row, cells in zip(self.rows, self.cells, strict=True)
        )
        return "; ".join((" ".join(self.columns), *rows))


def draw(
    scene: Scene,
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[int]],
    size: tuple[int, int] = (SIDE, SIDE),
) -> DrawnTable:
    """Draw a table that fills the image: row names on the left, column names above; with a grid, with rules between the
    rows, or with every other row shaded."""
    paper = scene.paper()
    image = scene.sheet(size, paper)
    pen, style = images.Pen(image), scene.rng.choice(("grid", "rules", "stripes"))
    name, ink = scene.font("".join((*columns, *rows))), scene.ink(paper)
    left, top = 3, 3
    wide, high = size[0] - 2 * left, (size[1] - 2 * top) / (len(rows) + 1)
    first = wide * (0.42 if len(columns) > 2 else 0.46)  # row names are longer than numbers
    step = (wide - first) / len(columns)
    longest = max(rows, key=len)
    face = images.fitting(name, longest, first - 6, min(18, int(0.7 * high)))
    header_face = images.fitting(name, max(columns, key=len), step - 4, min(18, int(0.7 * high)))
    lines = [top + i * high for i in range(len(rows) + 2)]
    if scene.rng.random() < 0.6:
        pen.rectangle((left, lines[0]), (left + wide, lines[1]), scene.rng.choice(HEADER_COLOURS))
    if style == "stripes":
        for y in lines[1:-1:2]:
            red, green, blue = (v - 14 for v in paper)
            pen.rectangle((left, y), (left + wide, y + high), (red, green, blue))
    if style != "stripes":
        for y in lines:
            pen.line([(left, y), (left + wide, y)], RULE)
    if style == "grid":
        for x in (left, *(left + first + j * step for j in range(len(columns) + 1))):
            pen.line([(x, lines[0]), (x, lines[-1])], RULE)
    pen.line([(left, lines[1]), (left + wide, lines[1])], RULE, width=2)
    for j, column in enumerate(columns):
        x = left + first + (j + 0.5) * step
        pen.text((x, lines[0] + high / 2), column, header_face, ink)
        for i in range(len(rows)):
            middle = (x, lines[i + 1] + high / 2)
            pen.text(middle, str(cells[i][j]), face, ink)
    for i, row in enumerate(rows):
        pen.text((left + 4, lines[i + 1] + high / 2), row, face, ink, anchor="lm")
    return DrawnTable(image, tuple(columns), tuple(rows), tuple(tuple(row) for row in cells))
