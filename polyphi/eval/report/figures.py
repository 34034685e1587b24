"""The report's tables and our scores as figures: bar charts by modality, radar charts, and scores against sizes.

>>> Path("figures.html").write_text(page(results))           # a results folder's results.json

Inline SVG, so that colours follow light or dark mode. Each figure has a text alternative.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from polyphi.eval.report.paper import averaged, lower_is_better, points, tables
from polyphi.eval.report.tables import html

Row = Mapping[str, Any]
Point = tuple[str, str, float]
"""A CSS class, a name, a number."""
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


@dataclass(frozen=True)
class OwnScores:
    """Our numbers by table and label, in the report's unit: score and interval; with several judges, the first one's.
    `substitute` has those of other samples than the report's."""

    name: str
    scores: Mapping[tuple[str, str], tuple[float, float, float]]
    substitute: frozenset[tuple[str, str]]
    parameters: int | None = None


def own_scores(results: Mapping[str, Any]) -> OwnScores:
    rows = results["rows"]
    scores: dict[tuple[str, str], tuple[float, float, float]] = {}
    substitute = set()
    for row in [*rows, *averaged(rows)]:
        if row["table"] and row["score"] is not None:
            table = tables()[row["table"]]
            label, _ = table.cell(row)
            low, score, high = (points(row["metric"], row[k]) for k in ("low", "score", "high"))
            if (row["table"], label) not in scores and row["status"] == "substitute data":
                substitute.add((row["table"], label))
            scores.setdefault((row["table"], label), (score, low, high))
    return OwnScores(results["model"], scores, frozenset(substitute), results.get("parameters"))


def page(results: Mapping[str, Any]) -> str:
    """Return the page with all figures; without rows of ours, they show the report's numbers."""
    own = own_scores(results)
    sections = [
        (title.split(":")[0].lower().replace(" ", "-") + str(i), title, _panels(groups, own))
        for i, (title, groups) in enumerate(BARS.items())
    ]
    sections += [("radar", "Radar", _radars(own)), ("size", "Score and size", _sizes(own))]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'
        for name, title, content in sections
    )
    lede = (
        "The tables of the Phi-4-Mini technical report as figures. Phi is blue; "
        f"<b>{escape(own.name)}</b>, where measured, is orange, with its 95 % interval."
    )
    if own.substitute:
        lede += " * marks scores on other samples than the report's, which are not comparable."
    return html(
        f"polyphi eval · {own.name} · figures",
        f'<header class="top"><h1>{escape(own.name)} <small>and the report, in figures</small></h1>'
        f'<p class="lede">{lede}</p></header>'
        f'<nav><div><a href="report.html">Tables</a>{links}</div></nav><main>{body}</main>',
    )


def _figure(caption: str, note: str, svg: str) -> str:
    return (
        f'<figure class="card"><figcaption>{escape(caption)} <em>{escape(note)}</em></figcaption>'
        f"{svg}</figure>"
    )


def _svg(width: float, height: float, label: str, inner: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{inner}</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
    )


# Bars ---------------------------------------------------------------------------------------------

LABEL, LENGTH, LINE, BAR = 146, 126, 19, 11
WIDTH = LABEL + LENGTH + 50


def _panels(groups: Sequence[tuple[str, Sequence[str]]], own: OwnScores) -> str:
    figures = [
        _figure(
            label,
            f"{name}{', ↓ lower is better' if lower_is_better(name, label) else ''}",
            bars(name, label, own),
        )
        for name, labels in groups
        for label in labels
    ]
    return f'<div class="panels">{"".join(figures)}</div>'


def _models(name: str, label: str) -> list[Point]:
    """Return the models with a number in a row of the report."""
    table = tables()[name]
    values = [(column, table.value(label, column)) for column in table.columns]
    return [
        ("phi" if column.startswith("Phi-4") else "model", column, value)
        for column, value in values
        if value is not None
    ]


def bars(name: str, label: str, own: OwnScores) -> str:
    """Return a bar chart of a row, the best model first."""
    lower = lower_is_better(name, label)
    entries = _models(name, label)
    interval: tuple[float, float] | None = None
    if scores := own.scores.get((name, label)):
        mark = " *" if (name, label) in own.substitute else ""
        entries.append(("ours", _short(own.name, 18) + mark, scores[0]))
        interval = scores[1:]
    entries.sort(key=lambda e: e[2] if lower else -e[2])
    longest = max([value for _, _, value in entries], default=1) or 1
    out = []
    places = tables()[name].decimals
    for i, (css, model, value) in enumerate(entries):
        y, length = 3 + LINE * i, LENGTH * max(0.0, value) / longest
        out.append(
            _text(
                LABEL - 6,
                y + 9.5,
                model if css == "ours" else _short(model, 22),
                anchor="end",
                css=css,
            )
        )
        out.append(
            f'<rect class="bar {css}" x="{LABEL}" y="{y}" width="{max(length, 1):.1f}" height="{BAR}" rx="2"/>'
        )
        end = length
        if css == "ours" and interval:
            low, high = (LENGTH * min(1.0, max(0.0, v / longest)) for v in interval)
            middle, end = y + BAR / 2, max(length, high)
            out.append(
                f'<path class="whisker" d="M{LABEL + low:.1f} {middle}H{LABEL + high:.1f}'
                f"M{LABEL + low:.1f} {middle - 3}v6M{LABEL + high:.1f} {middle - 3}v6"
                '"/>'
            )
        out.append(_text(LABEL + end + 5, y + 9.5, f"{value:.{places}f}", css=css))
    text = f"{name}, {label}: " + ", ".join(f"{m} {v:.{places}f}" for _, m, v in entries)
    return _svg(WIDTH, 6 + LINE * len(entries), text, "".join(out))


def _short(model: str, longest: int) -> str:
    """Return a model's name without its date, cut to `longest` characters."""
    name = re.sub(r"[ -](20\d\d-\d\d-\d\d|prv-\d\d-\d\d)$", "", model.rstrip("*"))
    name = name.replace("Phi-4-Multimodal", "Phi-4-MM").replace(
        " (reasoning trained)", ", reasoning"
    )
    return name if len(name) <= longest else name[: longest - 1] + "…"


# Radars -------------------------------------------------------------------------------------------

RADIUS, SIDE = 112, 400


def _radars(own: OwnScores) -> str:
    about = "Each axis is relative to its best number; error rates are inverted, so that outwards is better."
    figures = [_figure(title, "", radar(*radar_of, own)) for title, radar_of in RADARS.items()]
    return f'<p class="about">{about}</p><div class="panels wide">{"".join(figures)}</div>'


def radar(name: str, axes: Mapping[str, str], others: Sequence[str], own: OwnScores) -> str:
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

    out = []
    for ring in (0.25, 0.5, 0.75, 1.0):
        out.append(f'<path class="axis" d="{_polygon([at(i, ring) for i in range(len(axes))])}"/>')
    for i, title in enumerate(axes.values()):
        (x, y), (tx, ty) = at(i, 1.0), at(i, 1.1)
        out.append(f'<path class="axis" d="M{centre} {middle}L{x:.1f} {y:.1f}"/>')
        anchor = "middle" if abs(tx - centre) < 8 else "start" if tx > centre else "end"
        out.append(_text(tx, ty + 4, title, anchor=anchor, css="soft"))
    for (css, model, _), model_shares in zip(lines, shares, strict=True):
        shape = _polygon([at(i, share) for i, share in enumerate(model_shares)])
        out.append(f'<path class="shape {css}" d="{shape}"><title>{escape(model)}</title></path>')
    top = 2 * RADIUS + 78.0
    for i, (css, model, _) in enumerate(lines):
        x, y = 12 + (i % 2) * SIDE / 2, top + 18 * (i // 2)
        out.append(f'<rect class="bar {css}" x="{x}" y="{y - 8}" width="14" height="8" rx="2"/>')
        out.append(_text(x + 20, y, _short(model, 28)))
    text = f"{name} as a radar chart: " + "; ".join(
        f"{model} " + ", ".join(f"{t} {s:.0%}" for t, s in zip(axes.values(), values, strict=True))
        for (_, model, _), values in zip(lines, shares, strict=True)
    )
    return _svg(SIDE, top + 18 * ((len(lines) + 1) // 2), text, "".join(out))


def _polygon(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"


# Sizes --------------------------------------------------------------------------------------------

LEFT, RIGHT, TOP, BOTTOM = 44.0, 404.0, 14.0, 236.0


def _sizes(own: OwnScores) -> str:
    figures = [
        _figure(
            label,
            f"{name}{', ↓ lower is better' if lower_is_better(name, label) else ''}",
            sizes(name, label, own),
        )
        for name, label in SIZES
    ]
    about = '<p class="about">Models with a number of parameters in their names; those of others are not public.</p>'
    return f'{about}<div class="panels wide">{"".join(figures)}</div>'


def billions(model: str) -> float | None:
    """Return the size in a model's name: "Phi-4-Mini 3.8B" -> 3.8."""
    match = re.search(r"(\d+(?:\.\d+)?)B\b", model)
    return float(match[1]) if match else None


def sizes(name: str, label: str, own: OwnScores) -> str:
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

    out = [f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    for value in _ticks(y0, y1):
        y = at(1.0, value)[1]
        out.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        out.append(_text(LEFT - 5, y + 4, f"{value:g}", anchor="end", css="soft"))
    for tick in (0.001, 0.01, 0.1, 1, 2, 3, 4, 6, 8, 16):
        if x0 <= math.log(tick) <= x1 and (tick not in (3, 6) or x1 - x0 < 2):
            x = at(tick, y0)[0]
            out.append(_text(x, BOTTOM + 15, f"{tick:g}B", anchor="middle", css="soft"))
    out += _labels([(*at(size, value), css, model) for css, model, value, size in dots])
    text = f"{name}, {label}, against size: " + ", ".join(
        f"{m} {v:g} at {s:.3g} billion" for _, m, v, s in dots
    )
    return _svg(RIGHT + 12, BOTTOM + 22, text, "".join(out))


def _ticks(low: float, high: float) -> list[float]:
    """Return four to ten round numbers between `low` and `high`."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [round(step * i, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _labels(dots: Sequence[tuple[float, float, str, str]]) -> list[str]:
    """Return dots with their names, each name shifted up or down until it overlaps no other."""
    out: list[str] = []
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
        near = x - 8 if before else x + 8
        if shift:
            out.append(f'<path class="lead" d="M{x:.1f} {y:.1f}L{near:.1f} {y + shift:.1f}"/>')
        anchor = "end" if before else "start"
        out.append(_text(near, y + shift + 4, name, anchor=anchor, css=css))
        out.append(f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return out


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
