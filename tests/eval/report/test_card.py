"""The section of a model card about benchmarks: its tables, and the entries of the Hub's model index."""

from polyphi_eval.report.card import of_benchmarks
from polyphi_eval.score import Measured


def test_a_card_has_all_rows_and_the_index_those_on_public_data() -> None:
    rows = [
        Measured(
            "Table 7", "MMLU", "mmlu", "accuracy", 100, 0.673, 0.65, 0.69, "reproduced setting"
        ),
        Measured(
            "Table 2", "ShareGPT4o_AI2D", "s", "accuracy", 9, 0.5, 0.3, 0.7, "substitute data"
        ),
    ]
    card = of_benchmarks(
        {
            "model": "it",
            "date": "2026-11-26",
            "rows": [row.as_dict() | {"limit": None} for row in rows],
            "skipped": {"blink": {"title": "BLINK", "rows": [], "why": ["missing"]}},
        }
    )
    row = "| MMLU | 67.3 | 67.3 | +0.0 | 65.0 to 69.0 | 100 | reproduced setting |"
    assert row in card["measured"]
    assert "not comparable" in card["measured"] and "BLINK" in card["measured"]
    assert [entry["metrics"][0]["value"] for entry in card["results"]] == [67.3]
