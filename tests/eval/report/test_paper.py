"""The report's averages, computed by the functions for ours, and the consistency of its tables."""

from collections.abc import Iterator
from typing import Any

import pytest

from polyphi_eval.benchmark import benchmarks
from polyphi_eval.report import paper
from polyphi_eval.report.paper import averaged, averages, mean, tables
from polyphi_eval.score import Measured

PHI = "Phi-4-Multimodal 5.6B"
SLIP = ("Table 4", "FLEURS Average", "GPT-4o")
"""The one average that is wrong in the report: the mean of its rows is 5.411, printed is 5.42."""


def printed() -> Iterator[tuple[tuple[str, str, str], float, float]]:
    """Yield cell, printed value and mean of the parts of every average with known parts, except Table 3's, which repeat
    averages of other tables."""
    for average in averages():
        table = tables()[average.table]
        for column in table.columns if average.table != "Table 3" else ():
            numbers = {(t, label): tables()[t].value(label, column) for t, label in average.parts}
            computed, value = mean(average, numbers), table.value(average.label, column)
            if computed is not None and value is not None:
                yield (average.table, average.label, column), value, computed


def test_all_averages_of_the_report_are_the_means_of_their_rows_but_one() -> None:
    results = list(printed())
    assert len(results) == 106
    off = {
        cell: computed
        for cell, value, computed in results
        # Means halfway between two printed values are rounded up or down.
        if abs(computed - value) > 0.5 * 10.0 ** -tables()[cell[0]].decimals + 1e-9
    }
    assert list(off) == [SLIP]
    assert off[SLIP] == pytest.approx(5.41125)


def test_every_average_row_has_its_parts() -> None:
    marked = {(t.name, label) for t in tables().values() for label in t.means}
    known = {(a.table, a.label): a for a in averages()}
    assert marked <= known.keys()
    assert {k for k in known if k not in marked} == {
        ("Table 3", x) for x in tables()["Table 3"].labels
    }
    for average in known.values():
        assert all(label in tables()[table].labels for table, label in average.parts)
    sizes = {k: len(a.parts) for k, a in known.items()}
    assert sizes["Table 1", "Average"] == 15 and sizes["Table 7", "Average"] == 22
    assert sizes["Table 8", "Average"] == 9 and sizes["Table 13", "Average"] == 8


def test_the_main_table_of_speech_agrees_with_the_detailed_ones_in_every_cell() -> None:
    main, compared = tables()["Table 3"], 0
    for average in averages():
        if average.table != "Table 3":
            continue
        ((table, label),) = average.parts
        for column in main.columns:
            theirs = average.column or tables()[table].phi if column == PHI else column
            if column != PHI and average.column:
                assert main.value(average.label, column) is None  # only Phi has such a row
                continue
            assert main.value(average.label, column) == tables()[table].value(label, theirs)
            compared += 1
    assert compared == 13 * 6 + 4


def test_what_only_the_authors_have_is_named_as_the_tables_name_it() -> None:
    assert all(label in tables()[table].labels for table, label in paper.PRIVATE)


def test_cells_that_the_text_lost_are_marked() -> None:
    table = tables()["Table 1"]
    assert table.value("ChartQA (test)", PHI) == 81.4
    assert ("ChartQA (test)", PHI) in table.recovered
    assert ("BLINK", PHI) not in table.recovered
    assert table.value("ChartQA (test)", "GPT-4o 2024-11-20") is None


def test_every_row_of_ours_has_a_place_in_the_report() -> None:
    for row in (row for b in benchmarks() for row in b.rows if row.table):
        label, column = tables()[row.table].cell({"label": row.label, "column": row.column})
        assert label in tables()[row.table].labels and column in tables()[row.table].columns


def test_models_of_table_9_are_its_columns() -> None:
    table = tables()["Table 9"]
    reasoning = "Phi-4-Mini (reasoning trained) 3.8B"
    assert table.labels == ("AIME 2024", "MATH-500", "GPQA Diamond") and table.phi == "Phi-4-Mini"
    assert table.value("MATH-500", reasoning) == 90.4
    cell = table.cell({"label": reasoning, "column": "MATH-500"})
    assert cell == table.cell({"label": "MATH-500", "column": reasoning})


# Ours ---------------------------------------------------------------------------------------------


def row(table: str, label: str, score: float, metric: str = "wer", **more: Any) -> dict[str, Any]:
    measured = Measured(
        table, label, "b", metric, 10, score, score - 0.01, score + 0.02, "reproduced setting"
    )
    return measured.as_dict() | more


def of(table: str, group: str, metric: str, step: float, **more: Any) -> list[dict[str, Any]]:
    report = tables()[table]
    labels = [x for x, g in zip(report.labels, report.groups, strict=True) if g == group]
    own = [x for x in labels if x not in report.means]
    return [row(table, x, step * (i + 1), metric, **more) for i, x in enumerate(own)]


def test_our_averages_are_made_as_the_reports_are() -> None:
    rows = of("Table 4", "FLEURS", "wer", 0.01)
    rows[0]["status"] = "substitute data"
    rows[1] |= {"errors": 2, "limit": 5}
    detail, main = averaged(rows)
    assert (detail["table"], detail["label"], detail["n"]) == ("Table 4", "FLEURS Average", 80)
    assert detail["score"] == pytest.approx(4.5)  # in per cent, as the table is
    assert (detail["low"], detail["high"]) == pytest.approx((3.5, 6.5))
    assert (detail["status"], detail["errors"], detail["limit"]) == ("substitute data", 2, 5)
    assert (main["table"], main["label"]) == ("Table 3", "ASR WER FLEURS")
    assert main["score"] == detail["score"]


def test_an_average_needs_all_its_parts() -> None:
    assert not averaged(of("Table 4", "FLEURS", "wer", 0.01)[1:])
    unread = of("Table 4", "FLEURS", "wer", 0.01)
    unread[3]["score"] = None
    assert not averaged(unread)


def test_judges_and_ways_of_asking_have_averages_of_their_own() -> None:
    rows = [r for j in ("a", "b") for r in of("Table 6", "MT-Bench", "mean", 2.0, judge=j)]
    rows[3]["score"] = 9.0
    results = [r for r in averaged(rows) if r["table"] == "Table 6"]
    assert [(r["judge"], r["score"]) for r in results] == [("a", 3.0), ("b", 5.5)]
    cot = tables()["Table 5"].columns[1]
    rows = of("Table 5", "FLEURS X-EN", "bleu", 2.0) + of(
        "Table 5", "FLEURS X-EN", "bleu", 3.0, column=cot
    )
    assert {(r["label"], r["column"], r["score"]) for r in averaged(rows)} == {
        ("FLEURS X-EN Average", None, 8.0),
        ("FLEURS X-EN Average", cot, 12.0),
        ("AST BLEU FLEURS X-EN 0-shot", None, 8.0),
        ("AST BLEU FLEURS X-EN CoT", None, 12.0),
    }


def test_languages_count_english_in_the_table_of_defects() -> None:
    german = of("Table 13", "", "accuracy", 0.0)
    english = of("Table 10", "", "accuracy", 0.08)
    scores = {(r["table"], r["label"]): r["score"] for r in averaged(german + english)}
    assert scores == {
        ("Table 10", "Average"): pytest.approx(20.0),
        ("Table 13", "Average"): pytest.approx(2.5),
    }
    assert ("Table 13", "Average") not in {(r["table"], r["label"]) for r in averaged(german)}


def test_which_way_is_better() -> None:
    assert paper.lower_is_better("Table 3", "ASR WER CV15")
    assert paper.lower_is_better("Table 12", "VPRR (lower better)")
    assert not paper.lower_is_better("Table 12", "IPRR (higher better)")
    assert not paper.lower_is_better("Table 7", "MMLU")
