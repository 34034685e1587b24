"""The report's tables as data, and the rows of which each of their averages is the mean.

>>> tables()["Table 4"].value("CV15 Average", "Phi-4-Multimodal 5.6B")
6.8
>>> averaged(results["rows"])         # the same averages of our rows, if none is missing

`paper.json` has the numbers that the report prints (corrections of its text are noted there, row by row); numbers that
are missing in its text and come from other public sources are `recovered`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SHARES = ("accuracy", "rate", "f1", "wer", "cer")
"""Metrics that the report prints in per cent."""
DECIMALS = {
    "Table 1": 1,
    "Table 2": 1,
    "Table 7": 1,
    "Table 8": 1,
    "Table 9": 1,
    "Table 12": 1,
}
"""Decimals of the numbers in a table; 2 in all others."""
PRIVATE = frozenset(
    {
        ("Table 3", "SSUM Golden3 1-7"),
        ("Table 6", "Golden3 hallucination (lower better)"),
        ("Table 6", "Golden3 instruction adherence"),
        ("Table 6", "Golden3 overall"),
        ("Table 15", "Internal (private)"),
    }
)
"""Rows whose data only the report's authors have."""
STATUSES = {
    "reproduced setting": "the public data, prompts and scoring that the report names, as far as it names them",
    "judge differs": "the same, but another judge gave the points, which alone changes such numbers",
    "metric differs": "the public data, but another metric than the one that the report names",
    "server-scored": "the answers of this split are not public; ours is another split, or a file to submit",
    "part of the data": "another number of rows than published: an incomplete copy, a limit, or one of several parts",
    "substitute data": "other samples than the report's, often a few synthetic ones: not comparable",
    "private": "only the report's authors have the data",
}
"""Descriptions of how comparable a number is with the report's, from the most to the least comparable."""

# Row of Table 3 -> the row of another table that it repeats, and the column there of our model (None: the first).
_COT = "Phi-4-Multimodal 5.6B CoT"
_MAIN = {
    "ASR WER CV15": ("Table 4", "CV15 Average", None),
    "ASR WER FLEURS": ("Table 4", "FLEURS Average", None),
    "ASR WER OpenASR": ("Table 4", "OpenASR Average", None),
    "AST BLEU CoVoST2 X-EN 0-shot": ("Table 5", "CoVoST2 X-EN Average", None),
    "AST BLEU CoVoST2 X-EN CoT": ("Table 5", "CoVoST2 X-EN Average", _COT),
    "AST BLEU CoVoST2 EN-X 0-shot": ("Table 5", "CoVoST2 EN-X Average", None),
    "AST BLEU CoVoST2 EN-X CoT": ("Table 5", "CoVoST2 EN-X Average", _COT),
    "AST BLEU FLEURS X-EN 0-shot": ("Table 5", "FLEURS X-EN Average", None),
    "AST BLEU FLEURS X-EN CoT": ("Table 5", "FLEURS X-EN Average", _COT),
    "AST BLEU FLEURS EN-X 0-shot": ("Table 5", "FLEURS EN-X Average", None),
    "AST BLEU FLEURS EN-X CoT": ("Table 5", "FLEURS EN-X Average", _COT),
    "SQQA MT-Bench 1-10": ("Table 6", "MT-Bench AVG", None),
    "SQQA MMMLU acc": ("Table 6", "MMMLU AVG", None),
    "SSUM Golden3 1-7": ("Table 6", "Golden3 overall", None),
    "SSUM AMI 1-7": ("Table 6", "AMI overall", None),
    "AU AirBench-chat 1-10": ("Table 6", "AirBench-chat AVG", None),
    "AU MMAU acc": ("Table 6", "MMAU AVG", None),
}
_ALSO = {("Table 13", "Average"): ("Table 10", "Average")}
"""Table 13's average includes English, which is in Table 10."""

Key = tuple[str, str]
"""A key of a report's number: two of table, row label and column."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the report with a row per benchmark and a column per model. `groups` has the group of each row, "" if
    the table has none; `means` has the labels of averages; `recovered` has the cells that the report's text lacks."""

    name: str
    caption: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    means: frozenset[str]
    values: Mapping[Key, float | None]
    recovered: frozenset[Key]

    @property
    def phi(self) -> str:
        """The column with which our numbers are compared by default."""
        return next((c for c in self.columns if c.startswith("Phi-4")), self.columns[0])

    @property
    def decimals(self) -> int:
        return DECIMALS.get(self.name, 2)

    def value(self, label: str, column: str) -> float | None:
        """Return a cell's number; None if it isn't available."""
        return self.values.get((label, column))

    def cell(self, row: Mapping[str, Any]) -> Key:
        """Return the label and column of the report's number for a row of ours."""
        label, column = row["label"], row.get("column") or self.phi
        return (label, column) if label in self.labels else (column, label)


@cache
def paper() -> dict[str, Any]:
    """Return the file's content: table -> caption, columns, rows with label and values."""
    tables: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "paper.json").read_text(encoding="utf-8")
    )
    return {name: table for name, table in tables.items() if not name.startswith("_")}


@cache
def tables() -> dict[str, PaperTable]:
    """Return all tables by name, in the report's order. Table 9, whose rows are models, is transposed."""
    return {name: _table(name, table) for name, table in paper().items()}


def _table(name: str, table: Mapping[str, Any]) -> PaperTable:
    values: dict[Key, float | None] = {}
    recovered = set()
    for row in table["rows"]:
        others = row.get("recovered_values") or [None] * len(row["values"])
        for column, value, other in zip(table["columns"], row["values"], others, strict=True):
            key = (column, row["label"]) if name == "Table 9" else (row["label"], column)
            values[key] = other if value is None else value
            if value is None and other is not None:
                recovered.add(key)
    labels, columns = tuple(r["label"] for r in table["rows"]), tuple(table["columns"])
    groups = tuple(r.get("group", "") for r in table["rows"])
    if name == "Table 9":
        labels, columns, groups = columns, labels, ("",) * len(columns)
    means = frozenset(r["label"] for r in table["rows"] if r.get("is_average"))
    return PaperTable(
        name, table["caption"], columns, labels, groups, means, values, frozenset(recovered)
    )


def lower_is_better(table: str, label: str) -> bool:
    """Whether a row has error rates, defect rates, hallucinations, or refusals of harmless requests."""
    return (
        table
        in (
            "Table 4",
            "Table 10",
            "Table 11",
            "Table 13",
            "Table 14",
            "Section 5 (no table)",
        )
        or "WER" in label
        or "lower better" in label
    )


# Averages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Average:
    """A row that is the plain mean of others (`parts`). `column` is our model's there, if it isn't the first."""

    table: str
    label: str
    parts: tuple[Key, ...]
    column: str | None = None


@cache
def averages() -> tuple[Average, ...]:
    """Return every average of the report, in an order such that parts come first."""
    averages: dict[Key, Average] = {}
    for name, table in tables().items():
        rows = list(zip(table.labels, table.groups, strict=True))
        for label, group in rows:
            if label in table.means:
                parts = tuple(
                    (name, other)
                    for other, other_group in rows
                    if other_group == group and other not in table.means
                )
                also = _ALSO.get((name, label))
                averages[name, label] = Average(name, label, parts + ((also,) if also else ()))
    main = [
        Average("Table 3", label, ((table, source),), column)
        for label, (table, source, column) in _MAIN.items()
    ]
    return (*averages.values(), *main)


def mean(average: Average, numbers: Mapping[Key, float | None]) -> float | None:
    """Return the mean of an average's parts; None if one is missing."""
    parts = [numbers.get(part) for part in average.parts]
    values = [part for part in parts if part is not None]
    return sum(values) / len(values) if len(values) == len(parts) else None


def points(metric: str, value: float) -> float:
    """Convert a score to the unit of the report's tables."""
    return 100 * value if metric in SHARES else value


def averaged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the report's averages of our rows (`Measured.as_dict`) as rows in the report's unit, for each judge and
    column that has all parts. Bounds are the means of the parts' bounds: such an interval is valid for any dependence
    between the parts."""
    groups: dict[tuple[str | None, str | None], dict[Key, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["table"] and row["score"] is not None:
            table = tables()[row["table"]]
            label, name = table.cell(row)
            other = None if name == table.phi else name
            groups[row["judge"], other].setdefault((row["table"], label), row)
    result = []
    for (judge, column), parts in groups.items():
        for average in averages():
            key = (average.table, average.label)
            if key in parts or (average.table == "Table 3" and average.column != column):
                continue
            own = [parts[part] for part in average.parts if part in parts]
            numbers = {
                name: mean(average, {k: points(r["metric"], r[name]) for k, r in parts.items()})
                for name in ("score", "low", "high")
            }
            if numbers["score"] is not None:
                parts[key] = _average(average, judge, own, numbers)
                result.append(dict(parts[key]))
    return result


def _average(
    average: Average,
    judge: str | None,
    parts: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, float | None],
) -> dict[str, Any]:
    return {
        "table": average.table,
        "label": average.label,
        "benchmark": "",
        "metric": "mean",
        "n": sum(part["n"] for part in parts),
        **numbers,
        "status": max((part["status"] for part in parts), key=list(STATUSES).index),
        "column": None if average.table == "Table 3" else parts[0]["column"],
        "lenient": None,
        **{key: sum(part[key] for part in parts) for key in ("errors", "unread", "cut")},
        "judge": judge,
        "rtfx": None,
        "note": "",
        "limit": next((part["limit"] for part in parts if part.get("limit")), None),
    }
