"""Our rows beside the report's: one page, or Markdown.

>>> Path("report.html").write_text(page(results))         # a results folder's results.json

`results` has `model`, `date` and `rows` (`Measured.as_dict`), and where there are such `skipped` (of each benchmark its
title, its rows and why), `agreement` of judges, and `parameters` of the model. Averages are made here (paper.py).
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from polyphi.eval.report.paper import (
    PRIVATE,
    SHARES,
    STATUSES,
    Table,
    averaged,
    lower_is_better,
    points,
    tables,
)

Row = Mapping[str, Any]
CLASSES = {
    "reproduced setting": "same",
    "judge differs": "near",
    "server-scored": "near",
    "substitute data": "other",
    "private": "other",
}
"""How a status looks."""
NONE = "–"
BEYOND = "Other benchmarks"


def html(title: str, body: str) -> str:
    """A self-contained page, light and dark: no script, font or image from elsewhere."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(title=escape(title), body=body)


# One row ------------------------------------------------------------------------------------------


def as_text(row: Row, value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A score of a row in the report's unit."""
    if value is None:
        return NONE
    return f"{points(row['metric'], value):{'+' if sign else ''}.{decimals}f}"


def decimals(row: Row) -> int:
    """As many as the row's table prints; numbers of our own have 1 in per cent and 2 otherwise."""
    if row["table"]:
        return tables()[row["table"]].decimals
    return 1 if row["metric"] in SHARES else 2


def theirs(row: Row) -> float | None:
    """The report's number that a row stands against."""
    if not row["table"]:
        return None
    table = tables()[row["table"]]
    return table.value(*table.place(row))


def difference(row: Row) -> float | None:
    """Ours less the report's, in its unit."""
    other = theirs(row)
    if other is None or row["score"] is None:
        return None
    return round(points(row["metric"], row["score"]) - other, decimals(row)) + 0.0  # no -0.0


def remarks(row: Row) -> list[str]:
    """What else one has to know of a number: who judged, how it was read, what went wrong."""
    texts = []
    if row["table"] and row["column"]:
        texts.append(f"beside {row['column']}")
    if row["judge"]:
        texts.append(f"judge: {row['judge']}")
    if row["lenient"] is not None:
        texts.append(f"lenient reading {as_text(row, row['lenient'], decimals(row))}")
    if row["errors"]:
        texts.append(f"{row['errors']} not answered (counted as wrong)")
    if row["unread"]:
        lacking = "readable points" if row["judge"] else "this score"
        texts.append(f"{row['unread']} without {lacking} (left out)")
    if row["cut"]:
        texts.append(f"{row['cut']} answers cut at their length")
    if row["rtfx"]:
        texts.append(f"RTFx {row['rtfx']:.3g}")
    if row["note"]:
        texts.append(row["note"])
    return texts


def laid_out(rows: Sequence[Row]) -> Iterator[tuple[Table, list[tuple[str, Row | None]]]]:
    """Each table that has rows of ours: its labels in the report's order, each with our rows (None where there is
    none). A benchmark's rows outside the report stand after its last one in the first table that it is in; those of
    benchmarks that the report doesn't have make a table of their own."""
    whole = [*rows, *averaged(rows)]
    waiting = [row for row in whole if not row["table"]]
    for table in tables().values():
        own = [row for row in whole if row["table"] == table.name]
        if not own:
            continue
        lines: list[tuple[str, Row | None]] = []
        for label in table.labels:
            here = [row for row in own if table.place(row)[0] == label]
            lines += [(label, row) for row in here] or [(label, None)]
            own = [row for row in own if table.place(row)[0] != label]
            for name in dict.fromkeys(row["benchmark"] for row in here if row["benchmark"]):
                if not any(row["benchmark"] == name for row in own):
                    lines += [(r["label"], r) for r in waiting if r["benchmark"] == name]
                    waiting = [r for r in waiting if r["benchmark"] != name]
        yield table, lines
    if waiting:
        labels = tuple(dict.fromkeys(row["label"] for row in waiting))
        blank = ("",) * len(labels)
        beyond = Table(
            BEYOND, "not in the report", ("",), labels, blank, frozenset(), {}, frozenset()
        )
        yield beyond, [(row["label"], row) for row in waiting]


# Markdown -----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], *, level: int = 3) -> str:
    """Our rows, a table of Markdown for each of the report's."""
    out = []
    for table, lines in laid_out(rows):
        out += [
            f"{'#' * level} {table.name}: {table.caption}",
            "",
            "| row | ours | report | difference | 95 % interval | n | status |",
            "|---|---:|---:|---:|---|---:|---|",
        ]
        out += [_markdown_row(label, row) for label, row in lines if row is not None]
        out.append("")
    return "\n".join(out)


def _markdown_row(label: str, row: Row) -> str:
    places, other, off = decimals(row), theirs(row), difference(row)
    more = "; ".join(filter(None, [row["status"], _first(row), *remarks(row)]))
    cells = [
        label if row["table"] else f"· {label}",
        as_text(row, row["score"], places),
        NONE if other is None else f"{other:.{places}f}",
        NONE if off is None else f"{off:+.{places}f}",
        _interval(row),
        f"{row['n']:,}",
        more,
    ]
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _interval(row: Row) -> str:
    if row["score"] is None:
        return NONE
    low, high = (as_text(row, row[end], decimals(row)) for end in ("low", "high"))
    return f"{low} to {high}"


def _first(row: Row) -> str:
    return f"at most {row['limit']} a row" if row.get("limit") else ""


# The page -----------------------------------------------------------------------------------------


def page(results: Mapping[str, Any]) -> str:
    """Every table of the report that has a row of ours, and what wasn't measured and why."""
    rows, skipped = results["rows"], results.get("skipped", {})
    laid = list(laid_out(rows))
    sections = [(_anchor(t.name), t.name, _section(t, lines, skipped)) for t, lines in laid]
    sections += [
        ("skipped", "Left out", _skipped(skipped)),
        ("judges", "Judges", _judges(results.get("agreement", {}))),
    ]
    sections = [s for s in sections if s[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}">{content}</section>' for name, _, content in sections)
    foot = (
        "Every number is made from the per-sample lines beside this page (<code>*.jsonl</code>) and can be made again "
        "without the model: <code>polyphi eval score FOLDER</code>. Averages are plain means of the rows that the "
        "report averages, their bounds the means of the rows' bounds."
    )
    return html(
        f"polyphi eval · {results['model']}",
        f'{_top(results, laid)}<nav><div><a href="figures.html">Figures</a>{links}</div></nav>'
        f"<main>{_legend(rows)}{body}<footer>{foot}</footer></main>",
    )


def _anchor(table: str) -> str:
    return "".join(c for c in table.lower() if c.isalnum())


def _top(results: Mapping[str, Any], laid: Sequence[tuple[Table, Sequence[Any]]]) -> str:
    rows = results["rows"]
    ours = [row for row in rows if row["table"]]
    tiles = [
        (str(len({(r["table"], r["label"]) for r in ours})), "rows of the report"),
        (str(len(laid)), "tables, averages included"),
        (f"{sum(row['n'] for row in ours):,}", "samples in these rows"),
        (str(len(results.get("skipped", {}))), "benchmarks left out"),
    ]
    html_tiles = "".join(
        f'<div class="tile"><b>{n}</b><span>{what}</span></div>' for n, what in tiles
    )
    return (
        f'<header class="top"><h1>{escape(results["model"])} <small>beside the report</small></h1>'
        f'<p class="lede">Measured {escape(results["date"])} on the benchmarks of the Phi-4-Mini technical report. Our '
        f"numbers stand first, then the report's for the same row.</p>"
        f'<div class="tiles">{html_tiles}</div></header>'
    )


def _legend(rows: Sequence[Row]) -> str:
    statuses = {row["status"] for row in rows} | {"private"}
    items = "".join(
        f"<dt>{_chip(status)}</dt><dd>{escape(text)}</dd>"
        for status, text in STATUSES.items()
        if status in statuses
    )
    about = (
        "Scores are strict: what doesn't parse is wrong. A lenient reading of the same answers stands below the row "
        "where there is one. ↓ less is better. A difference is green or brown where the report's number lies outside "
        "our 95 % interval, and grey where the data are others. RTFx: seconds of sound in a second of work."
    )
    return f'<section class="legend"><dl>{items}</dl><p class="about">{about}</p></section>'


def _chip(status: str) -> str:
    return f'<span class="chip {CLASSES.get(status, "")}">{escape(status)}</span>'


def _section(
    table: Table, lines: Sequence[tuple[str, Row | None]], skipped: Mapping[str, Any]
) -> str:
    several = sum(column.startswith("Phi-4") for column in table.columns) > 1
    others = [column for column in table.columns if several or column != table.phi]
    others = [] if len(table.columns) == 1 else others
    heads = ["row", "ours", "report", "difference", "95 % interval", "n", "status", *others]
    kinds = ["", "n", "n", "n", "n", "n", "", *["n model"] * len(others)]
    top = "".join(
        f'<th scope="col" class="{kind}">{escape(head)}</th>'
        for head, kind in zip(heads, kinds, strict=True)
    )
    why = {
        (t, label): name for name, entry in skipped.items() for t, label in entry.get("rows", ())
    }
    body = []
    for label, row in lines:
        cells = _ours(label, row) if row else _missing(table, label, why)
        place = label if row is None or row["table"] else None
        cells += [_cell(table, place, column) for column in others]
        first, rest = cells[0], zip(cells[1:], kinds[1:], strict=True)
        kind = "mean" if label in table.means else "" if place else "extra"
        body.append(
            f'<tr class="{kind}"><th scope="row">{first}</th>'
            + "".join(f'<td class="{k}">{cell}</td>' for cell, k in rest)
            + "</tr>"
        )
    notes = []
    if table.recovered:
        notes.append(
            "Numbers in italics are lost in the report's text and come from other public sources."
        )
    return (
        f"<h2>{escape(table.name)} <small>{escape(table.caption)}</small></h2>"
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(table.name)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + "".join(f'<p class="about">{note}</p>' for note in notes)
    )


def _cell(table: Table, label: str | None, column: str) -> str:
    value = table.value(label, column) if label else None
    if value is None:
        return NONE
    text = f"{value:.{table.decimals}f}"
    return f"<i>{text}</i>" if (label, column) in table.recovered else text


def _ours(label: str, row: Row) -> list[str]:
    places, other, off = decimals(row), theirs(row), difference(row)
    less = bool(row["table"]) and lower_is_better(row["table"], label)
    sub = "".join(f'<span class="sub">{escape(text)}</span>' for text in remarks(row))
    table = tables()[row["table"]] if row["table"] else None
    report = NONE if other is None else f"{other:.{places}f}"
    if table and table.place(row) in table.recovered:
        report = f"<i>{report}</i>"
    return [
        f"{_label(label, less)}{sub}",
        f'<b class="score">{as_text(row, row["score"], places)}</b>',
        report,
        NONE if off is None else _difference(row, off, places, less),
        _interval(row),
        f"{row['n']:,}" + (f'<span class="sub">{first}</span>' if (first := _first(row)) else ""),
        _chip(row["status"]),
    ]


def _label(label: str, less: bool) -> str:
    return escape(label) + (" ↓" if less and "lower better" not in label else "")


def _difference(row: Row, off: float, places: int, less: bool) -> str:
    """Coloured where the report's number lies outside our interval, of the same data."""
    low, high = (points(row["metric"], row[end]) for end in ("low", "high"))
    if row["status"] in ("substitute data", "private"):
        kind = "faint"
    elif low <= points(row["metric"], row["score"]) - off <= high:
        kind = ""
    else:
        kind = "good" if (off > 0) != less else "poor"
    return f'<span class="{kind}">{off:+.{places}f}</span>'


def _missing(table: Table, label: str, why: Mapping[tuple[str, str], str]) -> list[str]:
    """A row of the report that we have no number for."""
    value = table.value(label, table.phi)
    if (table.name, label) in PRIVATE:
        status = _chip("private")
    elif (table.name, label) in why:
        status = '<a class="chip" href="#skipped">left out</a>'
    else:
        status = '<span class="faint">' + (
            "parts are missing" if label in table.means else "not measured"
        )
        status += "</span>"
    report = NONE if value is None else _cell(table, label, table.phi)
    return [
        _label(label, lower_is_better(table.name, label)),
        NONE,
        report,
        NONE,
        NONE,
        NONE,
        status,
    ]


def _skipped(skipped: Mapping[str, Any]) -> str:
    if not skipped:
        return ""
    items = []
    for name, entry in skipped.items():
        rows = ", ".join(f"{table}: {label}" for table, label in entry.get("rows", ()) if table)
        why = "".join(f"<li>{escape(text)}</li>" for text in entry["why"])
        items.append(
            f"<h3>{escape(entry.get('title', name))} <em>{escape(rows)}</em></h3><ul>{why}</ul>"
        )
    about = (
        "What these need isn't there. <code>polyphi eval check-data DIR</code> says what is missing and where it comes "
        "from; the same command, with the data in place, adds their rows."
    )
    return (
        f'<h2>Left out</h2><p class="about">{about}</p><div class="card pad">{"".join(items)}</div>'
    )


def _judges(agreement: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    if not agreement:
        return ""
    rows = []
    for name, pairs in agreement.items():
        for pair, alike in pairs.items():
            correlation = alike.get("rank correlation")
            cells = [
                f"{alike['n']:.0f}",
                f"{100 * alike['equal']:.0f} %",
                f"{alike['difference']:+.2f}",
                NONE if correlation is None else f"{correlation:.2f}",
            ]
            rows.append(
                f'<tr><th scope="row">{escape(name)}<span class="sub">{escape(pair)}</span></th>'
                + "".join(f'<td class="n">{cell}</td>' for cell in cells)
                + "</tr>"
            )
    heads = ("n", "equal", "second less first", "rank correlation")
    top = '<th scope="col">judges and points</th>'
    top += "".join(f'<th scope="col" class="n">{head}</th>' for head in heads)
    return (
        '<h2>Judges</h2><p class="about">How two judges of the same answers agree.</p><div class="card scroll">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
