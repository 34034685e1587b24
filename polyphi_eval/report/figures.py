"""The report's tables and our scores as figures: bar charts by modality, radar charts, and scores against sizes.

>>> Path("figures.html").write_text(page(results))           # a results folder's results.json

This module has the geometry; `templates/charts.html` draws it as inline SVG, so that colours follow light or dark mode.
Each figure has a text alternative.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyphi.runtime.plots import ticks
from polyphi_eval.report.paper import averaged, lower_is_better, points, tables
from polyphi_eval.report.tables import TEMPLATES

ReportRow = Mapping[str, Any]
Point = tuple[str, str, float]
"""A point of a figure: CSS class, name, number."""
BARS: dict[str, list[tuple[str, Sequence[str]]]] = {
    "Vision": [("Table 1", ("OCRBench", "BLINK", "VideoMME-16Frame", "Average"))],
    "Vision and speech together": [("Table 2", tables()["Table 2"].labels)],
    "Speech: recognition": [("Table 3", tables()["Table 3"].labels[:3])],
    "Speech: translation": [
        ("Table 3", tuple(x for x in tables()["Table 3"].labels if "0-shot" in x))
    ],
    "Speech: questions, summaries, sound": [("Table 3", tables()["Table 3"].labels[11:])],
    "Language": [
        ("Table 7", ("Average", "MMLU", "MGSM", "IFEval", "BFCL", "HumanEval")),
        ("Table 8", ("Average",)),
    ],
    "Reasoning": [("Table 9", tables()["Table 9"].labels)],
    "Safety": [
        ("Table 10", ("Average",)),
        ("Table 11", ("Average",)),
        ("Table 12", tables()["Table 12"].labels),
        ("Table 13", ("Average",)),
        ("Table 14", ("Average",)),
        ("Table 15", tables()["Table 15"].labels),
    ],
}
RADARS = {
    "Speech (Table 3)": (
        "Table 3",
        {
            "ASR WER CV15": "CV15",
            "ASR WER FLEURS": "FLEURS",
            "ASR WER OpenASR": "OpenASR",
            "AST BLEU CoVoST2 X-EN 0-shot": "CoVoST2 X-EN",
            "AST BLEU CoVoST2 EN-X 0-shot": "CoVoST2 EN-X",
            "AST BLEU FLEURS X-EN 0-shot": "FLEURS X-EN",
            "AST BLEU FLEURS EN-X 0-shot": "FLEURS EN-X",
            "SQQA MT-Bench 1-10": "MT-Bench",
            "SQQA MMMLU acc": "MMMLU",
            "SSUM AMI 1-7": "AMI",
            "AU AirBench-chat 1-10": "AirBench",
            "AU MMAU acc": "MMAU",
        },
        ("Qwen2-audio 8B", "Gemini-2.0-Flash", "GPT-4o"),
    ),
    "Images with spoken questions (Table 2)": (
        "Table 2",
        {x: x.removeprefix("ShareGPT4o_") for x in tables()["Table 2"].labels[:4]},
        ("InternOmni 8.7B", "Gemini-2.0-Flash-Lite-prv-02-05", "Gemini-2.0-Flash"),
    ),
    "Language (Table 7)": (
        "Table 7",
        {
            x: x
            for x in (
                "BigBench-Hard",
                "MMLU",
                "MMLU-Pro",
                "GPQA",
                "HellaSwag",
                "MGSM",
                "GSM-8K",
                "MATH",
                "IFEval",
                "BFCL",
                "HumanEval",
                "MBPP",
            )
        },
        ("Llama-3.2-Ins 3B", "Qwen2.5-Ins 3B", "Qwen2.5-Ins 7B"),
    ),
}
SIZES = (
    ("Table 1", "Average"),
    ("Table 2", "Average"),
    ("Table 3", "ASR WER OpenASR"),
    ("Table 3", "ASR WER FLEURS"),
    ("Table 7", "Average"),
    ("Table 8", "Average"),
)


OTHER = ("metric differs", "part of the data", "substitute data")
"""Statuses of scores that are marked."""


@dataclass(frozen=True)
class OwnScores:
    """Our numbers by table and label, in the report's unit: score and interval; with several judges, the first one's.
    `other` has those that are not comparable with the report's: of other samples, or by another metric."""

    name: str
    scores: Mapping[tuple[str, str], tuple[float, float, float]]
    other: frozenset[tuple[str, str]]
    parameters: int | None = None


def own_scores(results: Mapping[str, Any]) -> OwnScores:
    rows = results["rows"]
    scores: dict[tuple[str, str], tuple[float, float, float]] = {}
    other = set()
    for row in [*rows, *averaged(rows)]:
        if row["table"] and row["score"] is not None:
            table = tables()[row["table"]]
            label, _ = table.cell(row)
            low, score, high = (points(row["metric"], row[k]) for k in ("low", "score", "high"))
            if (row["table"], label) not in scores and row["status"] in OTHER:
                other.add((row["table"], label))
            scores.setdefault((row["table"], label), (score, low, high))
    return OwnScores(results["model"], scores, frozenset(other), results.get("parameters"))


@dataclass(frozen=True)
class Figure:
    """A chart: its caption and note, its text alternative, the size of its drawing, and what is drawn."""

    caption: str
    note: str
    text: str
    width: float
    height: float
    drawing: "Sequence[Bar] | Radar | Scatter"


def page(results: Mapping[str, Any]) -> str:
    """Return the page with all figures; without rows of ours, they show the report's numbers."""
    own = own_scores(results)
    sections = [
        (
            title.split(":")[0].lower().replace(" ", "-") + str(i),
            title,
            [bars(name, label, own) for name, labels in groups for label in labels],
        )
        for i, (title, groups) in enumerate(BARS.items())
    ]
    return (
        TEMPLATES.get_template("figures.html").render(
            own=own,
            sections=sections,
            radars=[radar(title, *content, own) for title, content in RADARS.items()],
            sizes=[sizes(name, label, own) for name, label in SIZES],
        )
        + "\n"
    )


def _note(name: str, label: str) -> str:
    return f"{name}{', ↓ lower is better' if lower_is_better(name, label) else ''}"


# Bars ---------------------------------------------------------------------------------------------

LABEL, LENGTH, LINE = 146, 126, 19
WIDTH = LABEL + LENGTH + 50


def _models(name: str, label: str) -> list[Point]:
    """Return the models with a number in a row of the report."""
    table = tables()[name]
    values = [(column, table.value(label, column)) for column in table.columns]
    return [
        ("phi" if column.startswith("Phi-4") else "model", column, value)
        for column, value in values
        if value is not None
    ]


@dataclass(frozen=True)
class Bar:
    """A model's bar: its length, and the lengths at the bounds of our interval."""

    css: str
    name: str
    number: str
    length: float
    interval: Sequence[float]


def bars(name: str, label: str, own: OwnScores) -> Figure:
    """Return a bar chart of a row, the best model first."""
    lower, places = lower_is_better(name, label), tables()[name].decimals
    entries = _models(name, label)
    interval: Sequence[float] = ()
    if scores := own.scores.get((name, label)):
        mark = " *" if (name, label) in own.other else ""
        entries.append(("ours", _short(own.name, 18) + mark, scores[0]))
        interval = scores[1:]
    entries.sort(key=lambda e: e[2] if lower else -e[2])
    longest = max([value for _, _, value in entries], default=1) or 1

    def scaled(value: float) -> float:
        return LENGTH * min(longest, max(0.0, value)) / longest

    drawing = []
    for css, model, value in entries:
        short, bounds = (model, interval) if css == "ours" else (_short(model, 22), ())
        number = f"{value:.{places}f}"
        drawing.append(Bar(css, short, number, scaled(value), [scaled(bound) for bound in bounds]))
    text = f"{name}, {label}: " + ", ".join(f"{m} {v:.{places}f}" for _, m, v in entries)
    return Figure(label, _note(name, label), text, WIDTH, 6 + LINE * len(entries), drawing)


def _short(model: str, longest: int) -> str:
    """Return a model's name without its date, cut to `longest` characters."""
    name = re.sub(r"[ -](20\d\d-\d\d-\d\d|prv-\d\d-\d\d)$", "", model.rstrip("*"))
    name = name.replace("Phi-4-Multimodal", "Phi-4-MM").replace(
        " (reasoning trained)", ", reasoning"
    )
    return name if len(name) <= longest else name[: longest - 1] + "…"


# Radars -------------------------------------------------------------------------------------------

RADIUS, SIDE = 112, 400
NAMES = 2 * RADIUS + 78


@dataclass(frozen=True)
class Radar:
    """The paths of the rings; of each axis the path, and the position, alignment and text of its title; of each model
    the CSS class, path, name and short name."""

    rings: Sequence[str]
    axes: Sequence[tuple[str, float, float, str, str]]
    shapes: Sequence[tuple[str, str, str, str]]


def radar(
    caption: str, name: str, axes: Mapping[str, str], others: Sequence[str], own: OwnScores
) -> Figure:
    """Return a radar chart of models, each axis relative to its best number; missing numbers are at the centre. Ours is
    left out if it has fewer than three numbers."""
    table = tables()[name]
    lines: list[tuple[str, str, list[float | None]]] = [
        (f"model m{i + 1}", column, [table.value(label, column) for label in axes])
        for i, column in enumerate(others)
    ]
    lines.append(("phi", table.phi, [table.value(label, table.phi) for label in axes]))
    scores = [own.scores.get((name, label)) for label in axes]
    if sum(x is not None for x in scores) >= 3:
        lines.append(("ours", own.name, [x[0] if x else None for x in scores]))
    shares = [[0.0] * len(axes) for _ in lines]
    for axis, label in enumerate(axes):
        known = [v for _, _, values in lines if (v := values[axis]) is not None and v > 0]
        for model_shares, (_, _, values) in zip(shares, lines, strict=True):
            value = values[axis]
            if value is not None and known:
                lower = lower_is_better(name, label)
                model_shares[axis] = (
                    min(known) / max(value, min(known)) if lower else value / max(known)
                )
    centre, middle = SIDE / 2, RADIUS + 34

    def at(axis: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        return centre + RADIUS * share * math.cos(angle), middle + RADIUS * share * math.sin(angle)

    titles = []
    for i, title in enumerate(axes.values()):
        (x, y), (tx, ty) = at(i, 1.0), at(i, 1.1)
        anchor = "middle" if abs(tx - centre) < 8 else "start" if tx > centre else "end"
        titles.append((f"M{centre} {middle}L{x:.1f} {y:.1f}", tx, ty + 4, anchor, title))
    drawing = Radar(
        [_polygon([at(i, ring) for i in range(len(axes))]) for ring in (0.25, 0.5, 0.75, 1.0)],
        titles,
        [
            (
                css,
                _polygon([at(i, share) for i, share in enumerate(values)]),
                model,
                _short(model, 28),
            )
            for (css, model, _), values in zip(lines, shares, strict=True)
        ],
    )
    text = f"{name} as a radar chart: " + "; ".join(
        f"{model} " + ", ".join(f"{t} {s:.0%}" for t, s in zip(axes.values(), values, strict=True))
        for (_, model, _), values in zip(lines, shares, strict=True)
    )
    return Figure(caption, "", text, SIDE, NAMES + 18 * ((len(lines) + 1) // 2), drawing)


def _polygon(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"


# Sizes --------------------------------------------------------------------------------------------

LEFT, RIGHT, TOP, BOTTOM = 44, 404, 14, 236


@dataclass(frozen=True)
class Dot:
    """A model's dot, and its name with its position and alignment."""

    css: str
    x: float
    y: float
    name: str
    name_x: float
    name_y: float
    anchor: str


@dataclass(frozen=True)
class Scatter:
    """The models' dots, and the ticks of scores (y) and sizes (x): position and number."""

    scores: Sequence[tuple[float, str]]
    sizes: Sequence[tuple[float, str]]
    dots: Sequence[Dot]


def billions(model: str) -> float | None:
    """Return the size in a model's name: "Phi-4-Mini 3.8B" -> 3.8."""
    match = re.search(r"(\d+(?:\.\d+)?)B\b", model)
    return float(match[1]) if match else None


def sizes(name: str, label: str, own: OwnScores) -> Figure:
    """Return a chart of scores against billions of parameters, on a logarithmic scale."""
    dots = [(c, m, v, size) for c, m, v in _models(name, label) if (size := billions(m))]
    scores = own.scores.get((name, label))
    if scores and own.parameters:
        dots.append(("ours", own.name, scores[0], own.parameters / 1e9))
    xs, ys = [math.log(d[3]) for d in dots], [d[2] for d in dots]
    x0, x1 = min(xs) - 0.15, max(xs) + 0.15
    margin = 0.08 * (max(ys) - min(ys) or 1)
    y0, y1 = min(ys) - margin, max(ys) + margin

    def at(size: float, value: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * (math.log(size) - x0) / (x1 - x0)
        return x, BOTTOM - (BOTTOM - TOP) * (value - y0) / (y1 - y0)

    drawing = Scatter(
        [(at(1.0, value)[1], f"{value:g}") for value in ticks(y0, y1)],
        [
            (at(tick, y0)[0], f"{tick:g}")
            for tick in (0.001, 0.01, 0.1, 1, 2, 3, 4, 6, 8, 16)
            if x0 <= math.log(tick) <= x1 and (tick not in (3, 6) or x1 - x0 < 2)
        ],
        _dots([(*at(size, value), css, model) for css, model, value, size in dots]),
    )
    text = f"{name}, {label}, against size: " + ", ".join(
        f"{m} {v:g} at {s:.3g} billion" for _, m, v, s in dots
    )
    return Figure(label, _note(name, label), text, RIGHT + 12, BOTTOM + 22, drawing)


def _dots(dots: Sequence[tuple[float, float, str, str]]) -> list[Dot]:
    """Return dots with their names, each name shifted up or down until it overlaps no other."""
    out: list[Dot] = []
    occupied: list[tuple[float, float, float, float]] = [
        (x - 5, y - 5, x + 5, y + 5) for x, y, _, _ in dots
    ]
    for x, y, css, model in sorted(dots, key=lambda d: (d[2] == "ours", d[1])):
        name = re.sub(r" \d+(\.\d+)?B$", "", _short(model, 28))
        width = (6.2 if css == "model" else 6.9) * len(name)
        before = x + 8 + width > RIGHT + 10
        left = x - 8 - width if before else x + 8
        shifts = [shift for step in range(9) for shift in (-12 * step, 12 * step)]
        boxes = [(left, y + shift - 6, left + width, y + shift + 5) for shift in shifts]
        free = (
            (shift, box)
            for shift, box in zip(shifts, boxes, strict=True)
            if TOP - 8 < y + shift < BOTTOM and not any(_overlap(box, other) for other in occupied)
        )
        shift, box = next(free, (0, boxes[0]))
        occupied.append(box)
        near, anchor = (x - 8, "end") if before else (x + 8, "start")
        out.append(Dot(css, x, y, name, near, y + shift, anchor))
    return out


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


TEMPLATES.globals.update(
    LABEL=LABEL, LINE=LINE, NAMES=NAMES, LEFT=LEFT, RIGHT=RIGHT, TOP=TOP, BOTTOM=BOTTOM
)
