"""Geometry of the report page's graphics: the graph of stages, scores and effects on a line.

>>> graph(report["stages"])

The templates make SVG and CSS of it; colours are the page's CSS variables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi.checkpoints.parts import PREFIXES

CSS = {
    "language model": "lm",
    "vision encoder": "ve",
    "vision projector": "vp",
    "LoRA for vision": "vl",
    "audio encoder": "ae",
    "audio projector": "ap",
    "LoRA for speech": "al",
    "auxiliary head": "oh",
}
"""CSS class of the square of each part (checkpoints/parts.py) in the graph."""
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
        "parts": [(CSS[part], part in trained) for part in PREFIXES if part in trained | present],
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
