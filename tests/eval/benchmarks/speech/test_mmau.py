"""MMAU: its own rule of matching words, with its flaws, and the file for its server."""

import json
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.eval import score as scoring
from polyphi.eval.benchmark import LENIENT
from polyphi.eval.benchmarks.speech.mmau import benchmark, string_match
from polyphi.eval.cache import Cache
from polyphi.eval.sources import Data
from polyphi.messages import Completion, Message


@pytest.mark.parametrize(
    ("answer", "options", "seen"),
    [
        ("Man", ["Man", "Woman"], (1, 1)),
        ("It is a man.", ["Man", "Woman"], (1, 1)),
        ("MAN!", ["Man", "Woman"], (1, 1)),
        ("A man, not a woman", ["Man", "Woman"], (0, 0)),
        ("Human", ["Man", "Woman"], (0, 0)),
        ("", ["Man", "Woman"], (0, 0)),
        ("A", ["Man", "Woman"], (0, 0)),
        # The wrong option's own words decide, not those that it shares.
        ("an adult man", ["An adult man", "A woman"], (1, 1)),
        ("The answer is: a adult man.", ["adult man", "a woman"], (0, 1)),
        # A wrong option that the right one has in it has no words of its own.
        ("Fast and loud", ["Fast and loud", "Fast"], (1, 1)),
        ("Fast", ["Fast", "Fast and loud"], (1, 1)),
        ("Fast and loud", ["Fast", "Fast and loud"], (0, 0)),
        # Its known flaw: the same words in another order are the same to it.
        ("first dog, then cat", ["cat first, then dog", "dog first, then cat"], (1, 1)),
        # Words matter, not signs: "-5" and "5" are one.
        ("5", ["-5", "7"], (1, 1)),
    ],
)
def test_words_of_the_right_option_and_none_of_a_wrong_one(
    answer: str, options: list[str], seen: tuple[float, float]
) -> None:
    """The first option is the right one."""
    sample = Sample("s", (Message.assistant(options[0]),), "", "", {"options": options})
    score = string_match(answer, sample)
    assert (score.value, score.parts[LENIENT]) == seen


def test_answers_to_withheld_questions_go_into_a_file_and_count_nowhere(tmp_path: Path) -> None:
    class Model:
        def generate(self, messages: Any, **_: Any) -> Completion:
            return Completion("Rain")

    benchmark.write_fixtures(tmp_path)
    lines = scoring.evaluate(
        benchmark,
        Data(tmp_path),
        Cache(Model(), tmp_path / "out", "m"),
        tmp_path / "out",  # type: ignore[arg-type]
    )
    rows = scoring.rows_of(benchmark, scoring.score(benchmark, lines))
    assert [(r.label, r.n, r.status) for r in rows] == [
        (f"MMAU {task}", 2, "server-scored") for task in ("music", "sound", "speech")
    ]
    held = json.loads((tmp_path / "out/mmau.submission.json").read_text())
    asked = json.loads((tmp_path / "MMAU/mmau-test.json").read_text())
    assert [{k: v for k, v in row.items() if not k.startswith("model_")} for row in held] == asked
    assert all(row["model_prediction"] == row["model_output"] == "Rain" for row in held)
