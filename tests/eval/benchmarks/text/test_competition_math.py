"""Mathematics: extraction of boxed answers, and equality of expressions."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmarks.text import competition_math
from polyphi_eval.benchmarks.text.competition_math import plain_box


def sample(reference: str) -> Sample:
    prompt = competition_math.prompt_of("What is it?")
    return Sample("m", (prompt, Message.assistant(reference)), "here", "CC0-1.0")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("It is $\\boxed{42}$.", "42"),
        ("\\boxed{1} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{x", None),
        ("42", None),
        ("\\boxed{}", ""),
    ],
)
def test_the_last_box_counts(text: str, box: str | None) -> None:
    assert competition_math.last_box(text) == box


def test_timeouts_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competition_math, "SECONDS", 1)
    assert competition_math.score_boxed("\\boxed{9^{9^{9^9}}}", sample("1")).value == 0


def test_comparison_works_in_other_threads() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert (
            pool.submit(competition_math.score_boxed, "\\boxed{0.5}", sample("\\frac{1}{2}"))
            .result()
            .value
        )


@pytest.mark.parametrize(
    ("solution", "answer"), [("It is $\\boxed 2$.", "2"), ("Thus $\\fbox{3}$.", "3")]
)
def test_boxes_of_old_solutions(solution: str, answer: str) -> None:
    assert plain_box(solution) == answer
