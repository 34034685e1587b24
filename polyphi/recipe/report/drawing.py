"""Pictures of the report page as inline SVG: the graph of stages, loss curves. Colours are the page's CSS variables.

>>> graph(report["stages"]), curve([[0, 8.3], [100, 2.1]])
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

# What a stage's model is made of, in the order of the little squares: name, CSS class, fronts of parameter names.
PARTS = (
    ("language model", "lm", ("decoder.",)),
    ("vision encoder", "ve", ("vision.encoder.",)),
    ("vision projector", "vp", ("vision.projector.",)),
    ("LoRA for vision", "vl", ("lora.vision",)),
    ("audio encoder", "ae", ("audio.encoder.",)),
    ("audio projector", "ap", ("audio.projector.",)),
    ("LoRA for speech", "al", ("lora.speech",)),
    ("throw-away head", "oh", ("objective.",)),
)
# Column and row of each stage: the language model's chain on the left, then one lane per branch.
PLACES = {
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


def part_of(name: str) -> tuple[str, ...]:
    """The parts that a parameter name, or a glob over such names, belongs to: "vision.*" -> encoder and projector."""
    if ".lora." in name:
        return tuple(
            part for part, _, fronts in PARTS if fronts[0].startswith("lora.") and fronts[0] in name
        )
    stem = name.partition("*")[0]
    return tuple(
        part
        for part, _, fronts in PARTS
        if not fronts[0].startswith("lora.")
        and (stem.startswith(fronts[0]) or fronts[0].startswith(stem))
    )


def graph(stages: Sequence[Mapping[str, Any]]) -> str:
    """The stages as boxes, an arrow from each parent, a square per part: filled where it learned, hollow where it
    rests. A parent that is reached through another one has no arrow of its own."""
    ancestors = _ancestors(stages)
    names = {s["name"] for s in stages}
    places = {name: place for name, place in PLACES.items() if name in names}
    for i, name in enumerate(sorted(names - places.keys())):
        places[name] = (i, 3)
    right = max((c for c, _ in places.values()), default=0) * COLUMN + WIDTH
    bottom = max((r for _, r in places.values()), default=0) * ROW + HEIGHT
    out = [
        f'<svg class="graph" viewBox="{-MARGIN} {-MARGIN} {right + 2 * MARGIN} {bottom + 2 * MARGIN}" role="img" '
        'aria-label="Graph of the sixteen stages">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0.5 7.5 4 0 7.5z" class="tip"/></marker></defs>',
    ]
    for stage in stages:
        for parent in stage["parents"]:
            through = any(parent in ancestors.get(other, ()) for other in stage["parents"])
            if parent in places and not through:
                out.append(
                    f'<path class="edge" marker-end="url(#tip)" d="{_edge(places[parent], places[stage["name"]])}"/>'
                )
    out += [_node(stage, places[stage["name"]]) for stage in stages]
    return "".join([*out, "</svg>"])


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
    # Level until one column before its end, so that a long edge stays in its own lane.
    level = max(x0, x1 - (COLUMN - WIDTH) - 16)
    middle = (level + x1) / 2
    return f"M{x0:g} {y0:g}H{level:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"


def _node(stage: Mapping[str, Any], place: tuple[float, float]) -> str:
    x, y = place[0] * COLUMN, place[1] * ROW
    family, _, rest = stage["name"].partition("_")
    number, _, title = rest.partition("_")
    learned, present = set(stage["learned_parts"]), set(stage["parts"])
    classes = f"stage {family}" if stage["done"] else f"stage {family} missing"
    out = [
        f'<g class="{html.escape(classes)}" transform="translate({x:g} {y:g})">',
        f"<title>{html.escape(stage['name'])}: learns {', '.join(stage['learned_parts']) or 'nothing'}</title>",
        f'<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="9"/>',
        f'<rect class="edge-bar" width="4" height="{HEIGHT - 18}" y="9" rx="2"/>',
        f'<text x="13" y="19" class="family">{html.escape(family)} {html.escape(number)}</text>',
        f'<text x="13" y="36" class="title">{html.escape(title.replace("_", " "))}</text>',
    ]
    shown = [(part, css) for part, css, _ in PARTS if part in learned | present]
    for i, (part, css) in enumerate(shown):
        kind = "learned" if part in learned else "rests"
        out.append(
            f'<rect class="part {css} {kind}" x="{13 + 13 * i}" y="44" width="9" height="9" rx="2.5"/>'
        )
    return "".join([*out, "</g>"])


def legend() -> str:
    """What the squares of the graph mean."""
    items = "".join(
        f'<span><i class="part {css} learned"></i>{part}</span>' for part, css, _ in PARTS
    )
    return f'<div class="legend">{items}<span><i class="part rests"></i>hollow: present and frozen</span></div>'


def curve(points: Sequence[Sequence[float]], width: int = 240, height: int = 84) -> str:
    """A loss curve: a thin raw line and a bold smoothed one (the mean over a twelfth of the points around each)."""
    if len(points) < 2:
        return f'<svg class="curve" viewBox="0 0 {width} {height}"></svg>'
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    reach = len(points) // 24
    windows = (losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses)))
    smooth = [sum(window) / len(window) for window in windows]
    low, high = min(losses), max(losses)
    span, length = (high - low) or 1.0, (steps[-1] - steps[0]) or 1

    def path(values: Sequence[float]) -> str:
        places = (
            (width * (s - steps[0]) / length, 4 + (height - 8) * (high - v) / span)
            for s, v in zip(steps, values, strict=True)
        )
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)

    area = f"{path(smooth)}L{width} {height}L0 {height}z"
    drawn = {"area": area, "raw": path(losses), "smooth": path(smooth)}
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        + "".join(f'<path class="{name}" d="{d}"/>' for name, d in drawn.items())
        + "</svg>"
    )


def plot(low: float, score: float, high: float, ticks: Sequence[tuple[str, float]]) -> str:
    """A score on a line from 0 to 100 per cent, with its interval and a mark per baseline. All values are 0 to 1."""

    def at(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, value)):.1f}%"

    marks = "".join(
        f'<i class="tick {name}" style="left:{at(v)}" title="{name} {100 * v:.1f}"></i>'
        for name, v in ticks
    )
    width = f"{100 * (min(1.0, high) - min(1.0, max(0.0, low))):.1f}%"
    return (
        f'<div class="plot"><i class="ci" style="left:{at(low)};width:{width}"></i>{marks}'
        f'<i class="dot" style="left:{at(score)}"></i></div>'
    )


def effect(low: float, value: float, high: float, above: float) -> str:
    """An effect with its interval, on a line of its own scale; the mark in the middle is what it must exceed."""
    reach = 1.1 * max(abs(low - above), abs(high - above), abs(value - above)) or 1.0
    at = [50 + 50 * (x - above) / reach for x in (low, value, high)]
    return (
        f'<div class="plot"><i class="tick majority" style="left:50%"></i>'
        f'<i class="ci" style="left:{at[0]:.1f}%;width:{at[2] - at[0]:.1f}%"></i>'
        f'<i class="dot" style="left:{at[1]:.1f}%"></i></div>'
    )
