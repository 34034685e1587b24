"""MMAU's rule for matching words, with its flaws, and the file for its server."""

import json
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi_eval import score as scoring
from polyphi_eval.benchmark import LENIENT
from polyphi_eval.benchmarks.speech.mmau import benchmark, string_match
from polyphi_eval.cache import Cache
from polyphi_eval.sources import Data


@pytest.mark.parametrize(
    ("answer", "options", "scores"),
    [
        ("Man", ["Man", "Woman"], (1, 1)),
        ("It is a man.", ["Man", "Woman"], (1, 1)),
        ("MAN!", ["Man", "Woman"], (1, 1)),
        ("A man, not a woman", ["Man", "Woman"], (0, 0)),
        ("Human", ["Man", "Woman"], (0, 0)),
        ("", ["Man", "Woman"], (0, 0)),
        ("A", ["Man", "Woman"], (0, 0)),
        # Only words that the wrong option doesn't share count against an answer.
        ("an adult man", ["An adult man", "A woman"], (1, 1)),
        ("The answer is: a adult man.", ["adult man", "a woman"], (0, 1)),
        # A wrong option within the right one has no other words.
        ("Fast and loud", ["Fast and loud", "Fast"], (1, 1)),
        ("Fast", ["Fast", "Fast and loud"], (1, 1)),
        ("Fast and loud", ["Fast", "Fast and loud"], (0, 0)),
        # A known flaw of the rule: it ignores the order of words.
        ("first dog, then cat", ["cat first, then dog", "dog first, then cat"], (1, 1)),
        # The rule ignores signs: "-5" equals "5".
        ("5", ["-5", "7"], (1, 1)),
    ],
)
def test_words_of_the_right_option_and_none_of_a_wrong_one(
    answer: str, options: list[str], scores: tuple[float, float]
) -> None:
    """The first option is the right one."""
    sample = Sample("s", (Message.assistant(options[0]),), "", "", {"options": options})
    score = string_match(answer, sample)
    assert (score.value, score.parts[LENIENT]) == scores


def test_answers_to_test_questions_go_into_a_file_and_count_in_no_row(tmp_path: Path) -> None:
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
    submission = json.loads((tmp_path / "out/mmau.submission.json").read_text())
    questions = json.loads((tmp_path / "MMAU/mmau-test.json").read_text())
    answers = [(row.pop("model_prediction"), row.pop("model_output")) for row in submission]
    assert submission == questions and set(answers) == {("Rain", "Rain")}
