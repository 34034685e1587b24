"""Drawing tokens."""

import pytest
import torch

from polyphi.chat import SamplingParams
from polyphi.engine.sampling import Sampler, candidates, check

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def test_greedy_is_the_largest() -> None:
    assert Sampler(SamplingParams())(LOGITS) == 1


def test_top_k_keeps_the_k_best() -> None:
    probabilities, ids = candidates(LOGITS, SamplingParams(temperature=1.0, top_k=2))
    assert ids.tolist() == [1, 4]
    torch.testing.assert_close(probabilities, torch.tensor([2.0, 1.5]).softmax(-1))


def test_top_p_keeps_the_one_that_crosses() -> None:
    full = LOGITS.softmax(-1).sort(descending=True).values.cumsum(-1)
    for p in (0.01, 0.3, float(full[1]) - 1e-4, float(full[1]) + 1e-4, 1.0):
        probabilities, ids = candidates(LOGITS, SamplingParams(temperature=1.0, top_p=p))
        assert len(ids) == min(int((full < p).sum()) + 1, 5)
        assert probabilities.sum() == pytest.approx(1)


def test_draws_follow_the_probabilities() -> None:
    draw = Sampler(SamplingParams(temperature=0.5, seed=1))
    counts = torch.bincount(torch.tensor([draw(LOGITS) for _ in range(4000)]), minlength=5) / 4000
    torch.testing.assert_close(counts, (LOGITS / 0.5).softmax(-1), atol=0.03, rtol=0)


def test_a_seed_fixes_the_draws() -> None:
    def run(seed: int) -> list[int]:
        draw = Sampler(SamplingParams(temperature=3.0, seed=seed))
        return [draw(LOGITS) for _ in range(20)]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"stop": ("",)},
    ],
)
def test_meaningless_values_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        check(SamplingParams(**bad))
