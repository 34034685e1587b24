"""Pictures in words: a grid of cells, each with the words of what has its middle there.

>>> cells([("red star", 0.5, 0.0, 1.0, 0.5), ("7", 0.0, 0.5, 0.5, 1.0)], 2, 2)
[['', 'red star'], ['7', '']]
>>> cells([("red star", 0.5, 0.0, 1.0, 0.2)], 1, 2, sides=True)
[['', 'red star right top']]

A picture reaches the language model as such a grid, a token a cell and a separator after each row (report 2.2.1).
"""

from collections.abc import Sequence

Named = tuple[str, float, float, float, float]
"""Something in a picture: what it is called, and its box (left, top, right, bottom) as shares of the sides."""
EMPTY = "."
ROW_END = "\n"


def cells(shown: Sequence[Named], rows: int, cols: int, *, sides: bool = False) -> list[list[str]]:
    """The words in each of rows x cols cells, from left to right; "" where nothing has its middle. Characters that
    share a cell are written together: "no". With `sides`, things (but not characters) in an outer third of the
    picture are told to be there."""
    found: list[list[list[tuple[float, str]]]] = [[[] for _ in range(cols)] for _ in range(rows)]
    for words, left, top, right, bottom in shown:
        x, y = (left + right) / 2, (top + bottom) / 2
        if sides and len(words) > 1:
            words = " ".join((words, *_side(x, "left", "right"), *_side(y, "top", "bottom")))
        column, row = (
            min(count - 1, max(0, int(at * count))) for at, count in ((x, cols), (y, rows))
        )
        found[row][column].append((x, words))
    return [[_joined([words for _, words in sorted(cell)]) for cell in row] for row in found]


def covered(shown: Sequence[Named], side: int) -> list[str]:
    """The words of what lies over the middle of each of side x side patches, row by row; "" where nothing does."""
    words = []
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side, (row + 0.5) / side
            over = [w for w, left, top, right, low in shown if left <= x < right and top <= y < low]
            words.append(over[-1] if over else "")  # what was drawn last is on top
    return words


def _side(at: float, first: str, last: str) -> tuple[str, ...]:
    return (first,) if at < 1 / 3 else (last,) if at > 2 / 3 else ()


def _joined(words: Sequence[str]) -> str:
    text = ""
    for before, word in zip(["", *words], words, strict=False):
        text += word if len(before) == len(word) == 1 else f" {word}"
    return text.strip()
