"""The report's own tables as data, and which rows each of their averages is the mean of.

>>> tables()["Table 4"].value("CV15 Average", "Phi-4-Multimodal 5.6B")
6.8
>>> averaged(results["rows"])         # the same averages of our rows, where all their parts are there

`paper.json` holds what the report prints (repairs of its text are named there, row by row); numbers that its text lost
and other public sources have are `recovered`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SHARES = ("accuracy", "rate", "f1", "wer", "cer")
"""Metrics of ours that the report prints in per cent."""
DECIMALS = {"Table 1": 1, "Table 2": 1, "Table 7": 1, "Table 8": 1, "Table 9": 1, "Table 12": 1}
"""Decimals that a table prints; 2 in all others."""
PRIVATE = frozenset(
    {
        ("Table 3", "SSUM Golden3 1-7"),
        ("Table 6", "Golden3 hallucination (lower better)"),
        ("Table 6", "Golden3 instruction adherence"),
        ("Table 6", "Golden3 overall"),
        ("Table 15", "Internal (private)"),
    }
)
"""Rows of data that only the report's authors have."""
STATUSES = {
    "reproduced setting": "the public data, prompts and scoring that the report names, as far as it names them",
    "judge differs": "likewise, but another judge gave the points: such numbers differ by the judge alone",
    "server-scored": "the answers of this split are with its authors; ours is of another one, or a file to hand in",
    "substitute data": "other samples than the report's, often a handful that we made: not to be compared",
    "private": "only the report's authors have these data",
}
"""What a number of ours is beside the report's, from the most to the least comparable."""

# What Table 3 takes from which average, or other row, of the tables behind it; and from which of its columns.
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
"""Table 13's average counts English, which stands in Table 10."""

Key = tuple[str, str]
"""A table and the label of a row."""


@dataclass(frozen=True)
class Table:
    """A table of the report, one benchmark a row and one model a column. `groups` are in the rows' order, "" where the
    table has none; `recovered` are numbers that the report's text lost."""

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
        """The column that our numbers stand against unless they name another one."""
        return next((c for c in self.columns if c.startswith("Phi-4")), self.columns[0])

    @property
    def decimals(self) -> int:
        return DECIMALS.get(self.name, 2)

    def value(self, label: str, column: str) -> float | None:
        """None for what is not available, or couldn't be read."""
        return self.values.get((label, column))

    def place(self, row: Mapping[str, Any]) -> Key:
        """The report's row and column that a row of ours stands against."""
        label, column = row["label"], row.get("column") or self.phi
        return (label, column) if label in self.labels else (column, label)


@cache
def paper() -> dict[str, Any]:
    """The file itself: table -> caption, columns, rows with label and values."""
    tables: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "paper.json").read_text(encoding="utf-8")
    )
    return {name: table for name, table in tables.items() if not name.startswith("_")}


@cache
def tables() -> dict[str, Table]:
    """All tables by name, in the report's order. Table 9, whose rows are models, is turned."""
    return {name: _table(name, table) for name, table in paper().items()}


def _table(name: str, table: Mapping[str, Any]) -> Table:
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
    return Table(
        name, table["caption"], columns, labels, groups, means, values, frozenset(recovered)
    )


def lower_is_better(table: str, label: str) -> bool:
    """Error rates, defect rates, hallucinations, and refusals of what is harmless."""
    return (
        table in ("Table 4", "Table 10", "Table 11", "Table 13", "Table 14", "Section 5 (no table)")
        or "WER" in label
        or "lower better" in label
    )


# Averages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Average:
    """A row that is the plain mean of others. `column` is our model's among theirs, where it isn't the first."""

    table: str
    label: str
    parts: tuple[Key, ...]
    column: str | None = None


@cache
def averages() -> tuple[Average, ...]:
    """Every average of the report, those first that others are made of."""
    averages: dict[Key, Average] = {}
    for name, table in tables().items():
        rows = list(zip(table.labels, table.groups, strict=True))
        for label, group in rows:
            if label in table.means:
                parts = tuple(
                    (name, other)
                    for other, its in rows
                    if its == group and other not in table.means
                )
                also = _ALSO.get((name, label))
                averages[name, label] = Average(name, label, parts + ((also,) if also else ()))
    main = [
        Average("Table 3", label, ((table, source),), column)
        for label, (table, source, column) in _MAIN.items()
    ]
    return (*averages.values(), *main)


def mean(average: Average, numbers: Mapping[Key, float | None]) -> float | None:
    """The mean of an average's parts; None where one is missing."""
    parts = [numbers.get(part) for part in average.parts]
    known = [part for part in parts if part is not None]
    return sum(known) / len(known) if len(known) == len(parts) else None


def points(metric: str, value: float) -> float:
    """A score of ours in the unit of the report's tables."""
    return 100 * value if metric in SHARES else value


def averaged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The report's averages of rows of ours (`Measured.as_dict`), as such rows, in the report's unit; only those all of
    whose parts are there, for each judge and column. Bounds are the means of the parts' bounds: an interval that is
    wide enough however the parts depend on each other."""
    groups: dict[tuple[str | None, str | None], dict[Key, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["table"] and row["score"] is not None:
            table = tables()[row["table"]]
            label, place = table.place(row)
            other = None if place == table.phi else place
            groups[row["judge"], other].setdefault((row["table"], label), row)
    result = []
    for (judge, column), parts in groups.items():
        for average in averages():
            key = (average.table, average.label)
            if key in parts or (average.table == "Table 3" and average.column != column):
                continue
            chosen = [parts[part] for part in average.parts if part in parts]
            numbers = {
                name: mean(average, {k: points(r["metric"], r[name]) for k, r in parts.items()})
                for name in ("score", "low", "high")
            }
            if numbers["score"] is not None:
                parts[key] = _average(average, judge, chosen, numbers)
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
