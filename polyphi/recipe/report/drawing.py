"""Geometry of the report page's graphics: the graph of stages, loss curves, scores and effects on a line.

>>> graph(report["stages"]), curve([[0, 8.3], [100, 2.1]])

The templates make SVG and CSS of it; colours are the page's CSS variables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi_eval.report.figures import ticks

# Parts of a model, in the order of the squares in the graph: name, CSS class, prefixes of parameter names.
PARTS = (
    ("language model", "lm", ("decoder.",)),
    ("vision encoder", "ve", ("vision.encoder.",)),
    ("vision projector", "vp", ("vision.projector.",)),
    ("LoRA for vision", "vl", ("lora.vision",)),
    ("audio encoder", "ae", ("audio.encoder.",)),
    ("audio projector", "ap", ("audio.projector.",)),
    ("LoRA for speech", "al", ("lora.speech",)),
    ("auxiliary head", "oh", ("objective.",)),
)
# Column and row of each stage: the language model's chain on the left, then one lane per branch.
POSITIONS = {
    "text_1_pretrain": (0, 0),
    "text_2_long": (0, 1),
    "text_3_post": (0, 2),
    "text_4_align": (1, 1),
    "reasoning_1_pretrain": (2, 0),
    "reasoning_2_sft": (3, 0),
    "reasoning_3_dpo": (4, 0),
    "vision_0_encoder": (1, 2),
    "vision_1_align": (2, 1),
    "vision_2_joint": (3, 1),
    "vision_3_generative": (4, 1),
    "vision_4_multiframe": (5, 1),
    "speech_0_aed": (2, 2),
    "speech_1_pretrain": (3, 2),
    "speech_2_post": (4, 2),
    "joint_1_vision_speech": (6, 1.5),
}
WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 122, 62, 146, 104, 6
CURVE_WIDTH, CURVE_HEIGHT = 240, 84
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 56, 1080, 12, 290


def part_of(name: str) -> tuple[str, ...]:
    """The parts that a parameter name, or a glob over parameter names, belongs to: "vision.*" -> encoder and
    projector."""
    if ".lora." in name:
        return tuple(
            part
            for part, _, prefixes in PARTS
            if prefixes[0].startswith("lora.") and prefixes[0] in name
        )
    stem = name.partition("*")[0]
    return tuple(
        part
        for part, _, prefixes in PARTS
        if not prefixes[0].startswith("lora.")
        and (stem.startswith(prefixes[0]) or prefixes[0].startswith(stem))
    )


def graph(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The graph's geometry: `nodes` (a box per stage), `edges` (an SVG path from each parent), `view_box`, and the
    `width` and `height` of a box. A parent that is also an ancestor of another parent has no edge."""
    ancestors = _ancestors(stages)
    names = {s["name"] for s in stages}
    positions = {name: position for name, position in POSITIONS.items() if name in names}
    for i, name in enumerate(sorted(names - positions.keys())):
        positions[name] = (i, 3)
    right = max((c for c, _ in positions.values()), default=0) * COLUMN + WIDTH
    bottom = max((r for _, r in positions.values()), default=0) * ROW + HEIGHT
    edges = []
    for stage in stages:
        for parent in stage["parents"]:
            through = any(parent in ancestors.get(other, ()) for other in stage["parents"])
            if parent in positions and not through:
                edges.append(_edge(positions[parent], positions[stage["name"]]))
    return {
        "view_box": f"{-MARGIN} {-MARGIN} {right + 2 * MARGIN} {bottom + 2 * MARGIN}",
        "width": WIDTH,
        "height": HEIGHT,
        "edges": edges,
        "nodes": [_node(stage, positions[stage["name"]]) for stage in stages],
    }


def _ancestors(stages: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    parents = {s["name"]: s["parents"] for s in stages}

    def above(name: str) -> set[str]:
        return {a for p in parents.get(name, ()) for a in ({p} | above(p))}

    return {name: above(name) for name in parents}


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    (c0, r0), (c1, r1) = start, end
    if c0 == c1:  # straight down
        x = c0 * COLUMN + WIDTH / 2
        return f"M{x:g} {r0 * ROW + HEIGHT:g}V{r1 * ROW - 3:g}"
    x0, y0 = c0 * COLUMN + WIDTH, r0 * ROW + HEIGHT / 2
    x1, y1 = c1 * COLUMN - 3, r1 * ROW + HEIGHT / 2
    # Horizontal until one column before its end, so that a long edge stays in its lane.
    level = max(x0, x1 - (COLUMN - WIDTH) - 16)
    middle = (level + x1) / 2
    return f"M{x0:g} {y0:g}H{level:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"


def _node(stage: Mapping[str, Any], position: tuple[float, float]) -> dict[str, Any]:
    """A stage's box: its corner, its texts, and (CSS class, whether trained) of each part of its model."""
    family, _, suffix = stage["name"].partition("_")
    number, _, title = suffix.partition("_")
    trained, present = set(stage["learned_parts"]), set(stage["parts"])
    return {
        "x": f"{position[0] * COLUMN:g}",
        "y": f"{position[1] * ROW:g}",
        "name": stage["name"],
        "family": family,
        "number": number,
        "title": title.replace("_", " "),
        "done": stage["done"],
        "learned": stage["learned_parts"],
        "parts": [(css, part in trained) for part, css, _ in PARTS if part in trained | present],
    }


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


def plot(
    low: float, score: float, high: float, ticks: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Positions of a score, its interval and its baselines (`ticks`: CSS class, value) on a line from 0 to 100 per
    cent, as CSS lengths. All values are 0 to 1."""

    def at(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, value)):.1f}%"

    return {
        "left": at(low),
        "width": f"{100 * (min(1.0, high) - min(1.0, max(0.0, low))):.1f}%",
        "score": at(score),
        "ticks": [{"name": k, "at": at(v), "percent": f"{100 * v:.1f}"} for k, v in ticks],
    }


def effect(low: float, value: float, high: float, above: float) -> dict[str, str]:
    """Positions of an effect and its interval on a line with a separate scale, as CSS lengths; `above`, the value to
    exceed, is in the middle."""
    reach = 1.1 * max(abs(low - above), abs(high - above), abs(value - above)) or 1.0
    positions = [50 + 50 * (x - above) / reach for x in (low, value, high)]
    return {
        "left": f"{positions[0]:.1f}%",
        "width": f"{positions[2] - positions[0]:.1f}%",
        "value": f"{positions[1]:.1f}%",
    }
