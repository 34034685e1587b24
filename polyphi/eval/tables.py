"""Our rows beside the report's: one page, or Markdown.

>>> page({"model": "nano", "date": "2026-11-26", "rows": [...]})       # HTML
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from polyphi.eval.report import paper

SHARES = ("accuracy", "rate", "wer", "cer")
"""Metrics that people read in per cent."""


def shown(metric: str, value: float | None) -> str:
    """A score in the unit of the report's tables."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if metric in SHARES else f"{value:.2f}"


def page(told: Mapping[str, Any]) -> str:
    """Every table of the report that has a row of ours."""
    body = [f"<h1>{escape(told['model'])}</h1>", f"<p>{escape(told['date'])}</p>"]
    for table, held in paper().items():
        rows = [row for row in told["rows"] if row["table"] == table]
        if rows:
            body += [f"<h2>{escape(table)}. {escape(held['caption'])}</h2>", _table(rows, held)]
    return f"<!doctype html><meta charset=utf-8><title>polyphi eval</title>{''.join(body)}"


def _table(rows: Sequence[Mapping[str, Any]], held: Mapping[str, Any]) -> str:
    lines = ["<table><tr><th>row<th>ours<th>95 %<th>n<th>status"]
    lines[0] += "".join(f"<th>{escape(c)}" for c in held["columns"])
    labels = {row["label"]: row["values"] for row in held["rows"]}
    for row in rows:
        m = row["metric"]
        cells = [escape(row["label"]), shown(m, row["score"])]
        cells += [
            f"{shown(m, row['low'])} to {shown(m, row['high'])}",
            str(row["n"]),
            escape(row["status"]),
        ]
        cells += ["–" if v is None else f"{v:g}" for v in labels.get(row["label"], ())]
        lines.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return "".join(lines) + "</table>"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row."""
    lines = ["| table | row | ours | 95 % | n | status |", "|---|---|---:|---|---:|---|"]
    for row in rows:
        m = row["metric"]
        cells = [row["table"] or "–", row["label"], shown(m, row["score"])]
        cells += [
            f"{shown(m, row['low'])} to {shown(m, row['high'])}",
            str(row["n"]),
            row["status"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
