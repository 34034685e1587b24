"""Our rows compared with the report's: an HTML page, or Markdown.

>>> Path("report.html").write_text(page(results))         # a results folder's results.json

`results` has `model`, `date` and `rows` (`Measured.as_dict`), and optionally `skipped` (title, rows and reasons of each
benchmark), `agreement` of judges, and `parameters` of the model. Averages are computed here (paper.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polyphi.runtime.rendering import environment
from polyphi_eval.report.paper import (
    PRIVATE,
    SHARES,
    STATUSES,
    PaperTable,
    averaged,
    lower_is_better,
    points,
    tables,
)

ReportRow = Mapping[str, Any]
CLASSES = {
    "reproduced setting": "same",
    "judge differs": "near",
    "metric differs": "near",
    "server-scored": "near",
    "part of the data": "near",
    "substitute data": "other",
    "private": "other",
}
"""CSS class of each status."""
NONE = "–"
OTHER = "Other benchmarks"
TEMPLATES = environment("polyphi_eval.report")


# One row ------------------------------------------------------------------------------------------


def as_text(row: ReportRow, value: float | None, decimals: int) -> str:
    """Format a score of a row in the report's unit."""
    if value is None:
        return NONE
    return f"{points(row['metric'], value):.{decimals}f}"


def decimals(row: ReportRow) -> int:
    """Return the number of decimals in the row's table; outside the report 1 in per cent, otherwise 2."""
    if row["table"]:
        return tables()[row["table"]].decimals
    return 1 if row["metric"] in SHARES else 2


def remarks(row: ReportRow) -> list[str]:
    """Return the remarks on a row: rows that are missing, judge, lenient score, errors, RTFx, note."""
    texts = [row[key] for key in ("copy", "part") if row.get(key)]
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


def by_table(
    rows: Sequence[ReportRow],
) -> Iterator[tuple[PaperTable, list[tuple[str, ReportRow | None]]]]:
    """Yield each table for which there are rows, and its labels in the report's order, each with our rows (None if
    there are none). A benchmark's rows outside the report follow its last row of the first table that has one; those of
    other benchmarks form the last table."""
    complete = [*rows, *averaged(rows)]
    further = [row for row in complete if not row["table"]]
    for table in tables().values():
        own = [row for row in complete if row["table"] == table.name]
        if not own:
            continue
        lines: list[tuple[str, ReportRow | None]] = []
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
        other = PaperTable(
            OTHER, "not in the report", ("",), labels, blank, frozenset(), {}, frozenset()
        )
        yield other, [(row["label"], row) for row in further]


# A line of a table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number of the report as text, and whether it is recovered (paper.py)."""

    text: str = NONE
    recovered: bool = False


@dataclass(frozen=True)
class TableLine:
    """A line of a table as the texts of its cells: a row of ours (`measured`), or a row of the report without one,
    whose `status` is the reason. `others` has the report's numbers of other models."""

    css: str
    label: str
    arrow: str
    report: Cell
    others: Sequence[Cell]
    status: str
    measured: bool = False
    remarks: Sequence[str] = ()
    score: str = NONE
    difference: str = NONE
    difference_css: str | None = None
    interval: str = NONE
    n: str = NONE
    limit: str = ""

    @property
    def notes(self) -> list[str]:
        """Status, limit and remarks, as far as there are any."""
        return [note for note in (self.status, self.limit, *self.remarks) if note]


def _line(
    table: PaperTable,
    label: str,
    row: ReportRow | None,
    others: Sequence[str] = (),
    skipped: frozenset[tuple[str, str]] = frozenset(),
) -> TableLine:
    """Return the line of a label; `others` are columns of the report, `skipped` rows of benchmarks left out."""
    in_report = row is None or bool(row["table"])
    lower = in_report and lower_is_better(table.name, label)
    key = table.cell(row) if row else (label, table.phi)
    status = row["status"] if row else _reason(table, label, skipped)
    line = TableLine(
        css="extra" if not in_report else "mean" if label in table.means else "",
        label=f"{label} (ours: {row['ours']})" if row and row.get("ours") else label,
        arrow=" ↓" if lower and "lower better" not in label else "",
        report=_cell(table, key) if in_report else Cell(),
        others=[_cell(table, (label, name)) if in_report else Cell() for name in others],
        status=status,
    )
    if row is None:
        return line
    line = replace(
        line,
        measured=True,
        remarks=remarks(row),
        n=f"{row['n']:,}",
        limit=f"at most {row['limit']} a row" if row.get("limit") else "",
    )
    if row["score"] is None:
        return line
    places = decimals(row)
    low, score, high = (points(row["metric"], row[end]) for end in ("low", "score", "high"))
    line = replace(
        line, score=f"{score:.{places}f}", interval=f"{low:.{places}f} to {high:.{places}f}"
    )
    value = table.value(*key) if in_report else None
    if value is None:
        return line
    difference = round(score - value, places) + 0.0  # no -0.0
    if status in ("substitute data", "private"):
        css = "faint"
    elif low <= score - difference <= high:
        css = ""
    else:
        css = "good" if (difference > 0) != lower else "poor"
    return replace(line, difference=f"{difference:+.{places}f}", difference_css=css)


def _cell(table: PaperTable, key: tuple[str, str]) -> Cell:
    value = table.value(*key)
    return Cell() if value is None else Cell(f"{value:.{table.decimals}f}", key in table.recovered)


def _reason(table: PaperTable, label: str, skipped: frozenset[tuple[str, str]]) -> str:
    """Return why a row of the report has no number of ours."""
    if (table.name, label) in PRIVATE:
        return "private"
    if (table.name, label) in skipped:
        return "left out"
    return "rows are missing" if label in table.means else "not measured"


# Markdown -----------------------------------------------------------------------------------------


def markdown(rows: Sequence[ReportRow], *, level: int = 3) -> str:
    """Return our rows as a Markdown table for each table of the report."""
    tables_of_rows = [
        (table, [_line(table, label, row) for label, row in lines if row is not None])
        for table, lines in by_table(rows)
    ]
    return TEMPLATES.get_template("tables.md").render(tables=tables_of_rows, level=level)


# The page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A table of the page: its id, the columns of other models, its lines."""

    table: PaperTable
    anchor: str
    others: Sequence[str]
    lines: Sequence[TableLine]


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the tables with our rows, the benchmarks left out and why, and the agreement of judges."""
    rows, skipped = results["rows"], results.get("skipped", {})
    sections = [_section(table, lines, skipped) for table, lines in by_table(rows)]
    ours = [row for row in rows if row["table"]]
    statuses = {row["status"] for row in rows} | {"private"}
    return (
        TEMPLATES.get_template("tables.html").render(
            model=results["model"],
            date=results["date"],
            tiles=[
                (len({(row["table"], row["label"]) for row in ours}), "rows of the report"),
                (len(sections), "tables, averages included"),
                (f"{sum(row['n'] for row in ours):,}", "samples in these rows"),
                (len(skipped), "benchmarks left out"),
            ],
            statuses={status: text for status, text in STATUSES.items() if status in statuses},
            classes=CLASSES,
            sections=sections,
            skipped=skipped,
            agreement=results.get("agreement", {}),
        )
        + "\n"
    )


def _section(
    table: PaperTable, lines: Sequence[tuple[str, ReportRow | None]], skipped: Mapping[str, Any]
) -> Section:
    several = sum(column.startswith("Phi-4") for column in table.columns) > 1
    others = [column for column in table.columns if several or column != table.phi]
    others = [] if len(table.columns) == 1 else others
    left_out = frozenset((t, label) for e in skipped.values() for t, label in e.get("rows", ()))
    return Section(
        table,
        "".join(c for c in table.name.lower() if c.isalnum()),
        others,
        [_line(table, label, row, others, left_out) for label, row in lines],
    )
