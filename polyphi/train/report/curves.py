"""Geometry of loss curves. Templates make SVG of it; colours are the page's CSS variables.

>>> curve([[0, 8.3], [100, 2.1]])
"""

from collections.abc import Sequence
from typing import Any

from polyphi.runtime.plots import ticks

CURVE_WIDTH, CURVE_HEIGHT = 240, 84
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 56, 1080, 12, 290


def curve(points: Sequence[Sequence[float]]) -> dict[str, str]:
    """SVG paths of a loss curve by CSS class, in a box of CURVE_WIDTH by CURVE_HEIGHT: the area below, a thin raw
    line, and a bold smoothed one (the mean over a twelfth of the points around each). Empty for fewer than two points.
    """
    if len(points) < 2:
        return {}
    width, height = CURVE_WIDTH, CURVE_HEIGHT
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    smooth = _smooth(losses)
    low, high = min(losses), max(losses)
    span, length = (high - low) or 1.0, (steps[-1] - steps[0]) or 1

    def path(values: Sequence[float]) -> str:
        positions = (
            (width * (s - steps[0]) / length, 4 + (height - 8) * (high - v) / span)
            for s, v in zip(steps, values, strict=True)
        )
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in positions)

    area = f"{path(smooth)}L{width} {height}L0 {height}z"
    return {"area": area, "raw": path(losses), "smooth": path(smooth)}


def _smooth(losses: Sequence[float]) -> list[float]:
    """The mean over a twelfth of the points around each."""
    reach = len(losses) // 24
    windows = (losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def chart(
    training: Sequence[Sequence[float]], evaluations: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """A chart of both losses ([step, loss] each) on common axes: its size, `loss_ticks` and `step_ticks` (position and
    text of each), and `lines` with their CSS class, SVG path and dots. Empty for fewer than two training points."""
    if len(training) < 2:
        return {}
    points = [*training, *evaluations]
    low, high = (f(p[1] for p in points) for f in (min, max))
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    last = max(p[0] for p in points) or 1

    def at(step: float, loss: float) -> tuple[float, float]:
        x = CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * step / last
        return x, CHART_TOP + (CHART_BOTTOM - CHART_TOP) * (high - loss) / (high - low)

    def path(line: Sequence[Sequence[float]]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in line))

    steps = [p[0] for p in training]
    smooth = list(zip(steps, _smooth([p[1] for p in training]), strict=True))
    lines: list[dict[str, Any]] = [
        {"css": "raw", "path": path(training), "dots": []},
        {"css": "smooth", "path": path(smooth), "dots": []},
    ]
    if evaluations:
        dots = [at(*point) for point in evaluations]
        lines.append({"css": "evaluation", "path": path(evaluations), "dots": dots})
    return {
        "width": CHART_RIGHT + 12,
        "height": CHART_BOTTOM + 28,
        "left": CHART_LEFT,
        "right": CHART_RIGHT,
        "loss_ticks": [(at(0, value)[1], f"{value:g}") for value in ticks(low, high)],
        "step_ticks": [(at(s, low)[0], f"{s:g}") for s in ticks(0, last) if s == int(s)],
        "lines": lines,
    }
