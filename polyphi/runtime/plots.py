"""Plots as PNG files.

>>> with subplots(Path("loss.png"), size=(6, 3.2)) as (figure, (axes,)):
...     axes.plot(steps, losses)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def subplots(
    path: Path, count: int = 1, *, size: tuple[float, float], dpi: int = 120, **options: Any
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """(figure, its axes side by side), written to `path` when the block ends. `size` is in inches; `options` are
    those of matplotlib's `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, **options)[0])
    yield figure, axes
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi)


def ticks(low: float, high: float) -> list[float]:
    """Return four to ten round numbers between `low` and `high`."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [round(step * i, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
