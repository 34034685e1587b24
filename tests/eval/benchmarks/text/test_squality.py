"""SQuALITY: the geometric mean of ROUGE."""

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmarks.text.squality import rouge
from polyphi_eval.statistics import measure, vector

REFERENCE = "the cat sat on the mat"


def sample(*answers: str) -> Sample:
    return Sample("s", (Message.assistant(REFERENCE),), "", "", {"answers": answers})


def test_the_row_is_the_geometric_mean_of_means() -> None:
    import numpy as np

    scores = [rouge("the cat lay on the mat", sample()), rouge("nothing", sample())]
    vectors = np.array([vector("geometric", s) for s in scores])
    mean, low, high = measure("geometric", vectors, 0)
    assert mean == pytest.approx((83.33 / 2 * 60 / 2 * 83.33 / 2) ** (1 / 3), abs=0.01)
    assert low <= mean <= high
