"""Images as grids of labels, which stand for the image in a text: each cell has the labels of the objects centred in
it.

>>> cells([("red star", 0.5, 0.0, 1.0, 0.5), ("7", 0.0, 0.5, 0.5, 1.0)], 2, 2)
[['', 'red star'], ['7', '']]
>>> cells([("red star", 0.5, 0.0, 1.0, 0.2)], 1, 2, sides=True)
[['', 'red star right top']]

Image tokens have the same layout: a token per cell and a separator after each row (report 2.2.1).
"""

from collections.abc import Sequence

LabelledBox = tuple[str, float, float, float, float]
"""Label and box (left, top, right, bottom) of an object, as shares of the image's width and height."""
EMPTY = "."
ROW_END = "\n"


def cells(
    boxes: Sequence[LabelledBox], rows: int, cols: int, *, sides: bool = False
) -> list[list[str]]:
    """Return the labels in each of rows x cols cells, from left to right; "" for cells without a centre. Single
    characters in the same cell are joined: "no". With `sides`, the labels of objects (not of characters) centred in an
    outer third of the image also name the side."""
    contents: list[list[list[tuple[float, str]]]] = [[[] for _ in range(cols)] for _ in range(rows)]
    for label, left, top, right, bottom in boxes:
        x, y = (left + right) / 2, (top + bottom) / 2
        if sides and len(label) > 1:
            label = " ".join((label, *_side(x, "left", "right"), *_side(y, "top", "bottom")))
        column, row = (
            min(count - 1, max(0, int(at * count))) for at, count in ((x, cols), (y, rows))
        )
        contents[row][column].append((x, label))
    return [[_joined([label for _, label in sorted(cell)]) for cell in row] for row in contents]


def covered(boxes: Sequence[LabelledBox], side: int) -> list[str]:
    """Return the label of the top box over the centre of each of side x side patches, row by row, or ""."""
    labels = []
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side, (row + 0.5) / side
            covering = [
                label
                for label, left, top, right, bottom in boxes
                if left <= x < right and top <= y < bottom
            ]
            labels.append(covering[-1] if covering else "")  # the box drawn last is on top
    return labels


def _side(at: float, first: str, last: str) -> tuple[str, ...]:
    return (first,) if at < 1 / 3 else (last,) if at > 2 / 3 else ()


def _joined(words: Sequence[str]) -> str:
    text = ""
    for previous, word in zip(["", *words], words, strict=False):
        text += word if len(previous) == len(word) == 1 else f" {word}"
    return text.strip()
