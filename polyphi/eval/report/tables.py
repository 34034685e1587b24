"""Our rows compared with the report's: an HTML page, or Markdown.

>>> Path("report.html").write_text(page(results))         # a results folder's results.json

`results` has `model`, `date` and `rows` (`Measured.as_dict`), and optionally `skipped` (title, rows and reasons of each
benchmark), `agreement` of judges, and `parameters` of the model. Averages are computed here (paper.py).
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
"""CSS class of each status."""
NONE = "–"
OTHER = "Other benchmarks"


def html(title: str, body: str) -> str:
    """Return a self-contained page, light and dark, without scripts or external files."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(title=escape(title), body=body)


# One row ------------------------------------------------------------------------------------------


def as_text(row: Row, value: float | None, decimals: int, *, sign: bool = False) -> str:
    """Format a score of a row in the report's unit."""
    if value is None:
        return NONE
    return f"{points(row['metric'], value):{'+' if sign else ''}.{decimals}f}"


def decimals(row: Row) -> int:
    """Return the number of decimals in the row's table; outside the report 1 in per cent, otherwise 2."""
    if row["table"]:
        return tables()[row["table"]].decimals
    return 1 if row["metric"] in SHARES else 2


def report_value(row: Row) -> float | None:
    """Return the report's number for a row."""
    if not row["table"]:
        return None
    table = tables()[row["table"]]
    return table.value(*table.cell(row))


def difference(row: Row) -> float | None:
    """Return our score minus the report's, in its unit."""
    value = report_value(row)
    if value is None or row["score"] is None:
        return None
    return round(points(row["metric"], row["score"]) - value, decimals(row)) + 0.0  # no -0.0


def remarks(row: Row) -> list[str]:
    """Return the remarks on a row: judge, lenient score, errors, RTFx, note."""
    texts = []
    if row["table"] and row["column"]:
        texts.append(f"compared with {row['column']}")
    if row["judge"]:
        texts.append(f"judge: {row['judge']}")
    if row["lenient"] is not None:
        texts.append(f"lenient score {as_text(row, row['lenient'], decimals(row))}")
    if row["errors"]:
        texts.append(f"{row['errors']} not answered (counted as wrong)")
    if row["unread"]:
        missing = "points that can be parsed" if row["judge"] else "this score"
        texts.append(f"{row['unread']} without {missing} (left out)")
    if row["cut"]:
        texts.append(f"{row['cut']} answers cut at max_tokens")
    if row["rtfx"]:
        texts.append(f"RTFx {row['rtfx']:.3g}")
    if row["note"]:
        texts.append(row["note"])
    return texts


def by_table(rows: Sequence[Row]) -> Iterator[tuple[Table, list[tuple[str, Row | None]]]]:
    """Yield each table for which there are rows, and its labels in the report's order, each with our rows (None if
    there are none). A benchmark's rows outside the report follow its last row of the first table that has one; those of
    other benchmarks form the last table."""
    complete = [*rows, *averaged(rows)]
    further = [row for row in complete if not row["table"]]
    for table in tables().values():
        own = [row for row in complete if row["table"] == table.name]
        if not own:
            continue
        lines: list[tuple[str, Row | None]] = []
        for label in table.labels:
            matches = [row for row in own if table.cell(row)[0] == label]
            lines += [(label, row) for row in matches] or [(label, None)]
            own = [row for row in own if table.cell(row)[0] != label]
            for name in dict.fromkeys(row["benchmark"] for row in matches if row["benchmark"]):
                if not any(row["benchmark"] == name for row in own):
                    lines += [(r["label"], r) for r in further if r["benchmark"] == name]
                    further = [r for r in further if r["benchmark"] != name]
        yield table, lines
    if further:
        labels = tuple(dict.fromkeys(row["label"] for row in further))
        blank = ("",) * len(labels)
        other = Table(
            OTHER, "not in the report", ("",), labels, blank, frozenset(), {}, frozenset()
        )
        yield other, [(row["label"], row) for row in further]


# Markdown -----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], *, level: int = 3) -> str:
    """Return our rows as a Markdown table for each table of the report."""
    out = []
    for table, lines in by_table(rows):
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
    places, value, off = decimals(row), report_value(row), difference(row)
    status = "; ".join(filter(None, [row["status"], _limit(row), *remarks(row)]))
    cells = [
        label if row["table"] else f"· {label}",
        as_text(row, row["score"], places),
        NONE if value is None else f"{value:.{places}f}",
        NONE if off is None else f"{off:+.{places}f}",
        _interval(row),
        f"{row['n']:,}",
        status,
    ]
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _interval(row: Row) -> str:
    if row["score"] is None:
        return NONE
    low, high = (as_text(row, row[end], decimals(row)) for end in ("low", "high"))
    return f"{low} to {high}"


def _limit(row: Row) -> str:
    return f"at most {row['limit']} a row" if row.get("limit") else ""


# The page -----------------------------------------------------------------------------------------


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the tables with our rows, the benchmarks left out and why, and the agreement of judges."""
    rows, skipped = results["rows"], results.get("skipped", {})
    layout = list(by_table(rows))
    sections = [(_anchor(t.name), t.name, _section(t, lines, skipped)) for t, lines in layout]
    sections += [
        ("skipped", "Left out", _skipped(skipped)),
        ("judges", "Judges", _judges(results.get("agreement", {}))),
    ]
    sections = [s for s in sections if s[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}">{content}</section>' for name, _, content in sections)
    foot = (
        "Every number is computed from the per-sample lines next to this page (<code>*.jsonl</code>); "
        "<code>polyphi eval score FOLDER</code> computes them again without the model. Averages are plain means of the "
        "rows that the report averages, their bounds the means of the rows' bounds."
    )
    return html(
        f"polyphi eval · {results['model']}",
        f'{_top(results, layout)}<nav><div><a href="figures.html">Figures</a>{links}</div></nav>'
        f"<main>{_legend(rows)}{body}<footer>{foot}</footer></main>",
    )


def _anchor(table: str) -> str:
    return "".join(c for c in table.lower() if c.isalnum())


def _top(results: Mapping[str, Any], layout: Sequence[tuple[Table, Sequence[Any]]]) -> str:
    rows = results["rows"]
    ours = [row for row in rows if row["table"]]
    tiles = [
        (str(len({(r["table"], r["label"]) for r in ours})), "rows of the report"),
        (str(len(layout)), "tables, averages included"),
        (f"{sum(row['n'] for row in ours):,}", "samples in these rows"),
        (str(len(results.get("skipped", {}))), "benchmarks left out"),
    ]
    html_tiles = "".join(
        f'<div class="tile"><b>{n}</b><span>{text}</span></div>' for n, text in tiles
    )
    return (
        f'<header class="top"><h1>{escape(results["model"])} <small>and the report</small></h1>'
        f'<p class="lede">Measured {escape(results["date"])} on the benchmarks of the Phi-4-Mini technical report. Our '
        f"numbers come first, then the report's for the same row.</p>"
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
        "Scores are strict: an answer that can't be parsed is wrong. The lenient score of the same answers, if there "
        "is one, is below the row. ↓ lower is better. A difference is green or brown if the report's number is outside "
        "our 95 % interval, and grey if the data differ. RTFx: seconds of audio processed per second."
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
    classes = ["", "n", "n", "n", "n", "n", "", *["n model"] * len(others)]
    top = "".join(
        f'<th scope="col" class="{css}">{escape(head)}</th>'
        for head, css in zip(heads, classes, strict=True)
    )
    why = {
        (t, label): name for name, entry in skipped.items() for t, label in entry.get("rows", ())
    }
    body = []
    for label, row in lines:
        cells = _ours(label, row) if row else _missing(table, label, why)
        in_report = label if row is None or row["table"] else None
        cells += [_cell(table, in_report, column) for column in others]
        first, rest = cells[0], zip(cells[1:], classes[1:], strict=True)
        css = "mean" if label in table.means else "" if in_report else "extra"
        body.append(
            f'<tr class="{css}"><th scope="row">{first}</th>'
            + "".join(f'<td class="{c}">{cell}</td>' for cell, c in rest)
            + "</tr>"
        )
    notes = []
    if table.recovered:
        notes.append(
            "Numbers in italics are missing in the report's text and come from other public sources."
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
    places, value, off = decimals(row), report_value(row), difference(row)
    lower = bool(row["table"]) and lower_is_better(row["table"], label)
    sub = "".join(f'<span class="sub">{escape(text)}</span>' for text in remarks(row))
    table = tables()[row["table"]] if row["table"] else None
    report = NONE if value is None else f"{value:.{places}f}"
    if table and table.cell(row) in table.recovered:
        report = f"<i>{report}</i>"
    return [
        f"{_label(label, lower)}{sub}",
        f'<b class="score">{as_text(row, row["score"], places)}</b>',
        report,
        NONE if off is None else _difference(row, off, places, lower),
        _interval(row),
        f"{row['n']:,}" + (f'<span class="sub">{limit}</span>' if (limit := _limit(row)) else ""),
        _chip(row["status"]),
    ]


def _label(label: str, lower: bool) -> str:
    return escape(label) + (" ↓" if lower and "lower better" not in label else "")


def _difference(row: Row, off: float, places: int, lower: bool) -> str:
    """Return a difference, coloured if the data are the report's and its number is outside our interval."""
    low, high = (points(row["metric"], row[end]) for end in ("low", "high"))
    if row["status"] in ("substitute data", "private"):
        css = "faint"
    elif low <= points(row["metric"], row["score"]) - off <= high:
        css = ""
    else:
        css = "good" if (off > 0) != lower else "poor"
    return f'<span class="{css}">{off:+.{places}f}</span>'


def _missing(table: Table, label: str, why: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the cells of a row of the report without a number of ours."""
    value = table.value(label, table.phi)
    if (table.name, label) in PRIVATE:
        status = _chip("private")
    elif (table.name, label) in why:
        status = '<a class="chip" href="#skipped">left out</a>'
    else:
        status = '<span class="faint">' + (
            "rows are missing" if label in table.means else "not measured"
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
        "Data or tools of these benchmarks are missing. <code>polyphi eval check-data DIR</code> lists what is missing "
        "and where to get it; then run the same command again to add their rows."
    )
    return (
        f'<h2>Left out</h2><p class="about">{about}</p><div class="card pad">{"".join(items)}</div>'
    )


def _judges(agreement: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    if not agreement:
        return ""
    rows = []
    for name, pairs in agreement.items():
        for pair, values in pairs.items():
            correlation = values.get("rank correlation")
            cells = [
                f"{values['n']:.0f}",
                f"{100 * values['equal']:.0f} %",
                f"{values['difference']:+.2f}",
                NONE if correlation is None else f"{correlation:.2f}",
            ]
            rows.append(
                f'<tr><th scope="row">{escape(name)}<span class="sub">{escape(pair)}</span></th>'
                + "".join(f'<td class="n">{cell}</td>' for cell in cells)
                + "</tr>"
            )
    heads = ("n", "equal", "second minus first", "rank correlation")
    top = '<th scope="col">judges and points</th>'
    top += "".join(f'<th scope="col" class="n">{head}</th>' for head in heads)
    return (
        '<h2>Judges</h2><p class="about">Agreement of two judges on the same answers.</p><div class="card scroll">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
