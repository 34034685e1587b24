"""Qasper: the annotators' references, and token F1."""

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT
from polyphi_eval.benchmarks.text.qasper import answer_text, token_f1


@pytest.mark.parametrize(
    ("answer", "value", "lenient"),
    [
        ("Six weeks", 1, 1),
        ("the six weeks.", 1, 1),
        ("It took six weeks", 2 * 0.5 / 1.5, 2 * 0.5 / 1.5),
        ("Six weeks. That is long.", 2 * 0.4 / 1.4, 1),
        ("42 days", 1, 1),
        ("seven", 0, 0),
        ("", 0, 0),
    ],
)
def test_token_f1_against_the_best_reference(answer: str, value: float, lenient: float) -> None:
    sample = Sample("q", (Message.assistant("Six weeks"),), "", "", {"answers": ["42 days"]})
    score = token_f1(answer, sample)
    assert (score.value, score.parts[LENIENT]) == pytest.approx((value, lenient))


def test_types_of_references() -> None:
    empty = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}
    assert answer_text({**empty, "unanswerable": True}) == "Unanswerable"
    assert answer_text({**empty, "extractive_spans": ["a", "b"]}) == "a, b"
    assert answer_text({**empty, "free_form_answer": "Six"}) == "Six"
    assert answer_text({**empty, "yes_no": True}) == "Yes"
    assert answer_text({**empty, "yes_no": False}) == "No"
