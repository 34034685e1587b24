"""SQuALITY: ROUGE against the best of the references, and the geometric mean."""

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmarks.text.squality import rouge
from polyphi_eval.statistics import measure, vector

REFERENCE = "the cat sat on the mat"


def sample(*answers: str) -> Sample:
    return Sample("s", (Message.assistant(REFERENCE),), "", "", {"answers": answers})


def test_rouge_of_a_known_pair() -> None:
    parts = rouge("the cat lay on the mat", sample()).parts
    assert parts == pytest.approx({"rouge1": 83.33, "rouge2": 60, "rougeL": 83.33}, abs=0.01)


def test_the_best_reference_counts_and_words_are_stemmed() -> None:
    assert rouge("dogs bark", sample("dog barks")).parts["rouge2"] == 100


def test_the_row_is_the_geometric_mean_of_means() -> None:
    import numpy as np

    scores = [rouge("the cat lay on the mat", sample()), rouge("nothing", sample())]
    vectors = np.array([vector("geometric", s) for s in scores])
    mean, low, high = measure("geometric", vectors, 0)
    assert mean == pytest.approx((83.33 / 2 * 60 / 2 * 83.33 / 2) ** (1 / 3), abs=0.01)
    assert low <= mean <= high
