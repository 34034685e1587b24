"""Qasper: the annotators' references."""

from polyphi_eval.benchmarks.text.qasper import answer_text


def test_types_of_references() -> None:
    empty = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}
    assert answer_text({**empty, "unanswerable": True}) == "Unanswerable"
    assert answer_text({**empty, "extractive_spans": ["a", "b"]}) == "a, b"
    assert answer_text({**empty, "free_form_answer": "Six"}) == "Six"
    assert answer_text({**empty, "yes_no": True}) == "Yes"
    assert answer_text({**empty, "yes_no": False}) == "No"
