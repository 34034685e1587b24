"""Dealing a step: nothing lost, nothing twice, budgets kept."""

from hypothesis import given
from hypothesis import strategies as st

from polyphi.batch import Batch, row
from polyphi.data.packing import deal, split


def sample(*lengths: int) -> list[Batch]:
    return [row([length] * length, supervise=[True] * length) for length in lengths]


def test_packs_keep_order_budget_and_pairs() -> None:
    samples = [sample(3, 3), sample(4), sample(20), sample(2), sample(5, 2)]
    packs = split(samples, 10)
    assert [len(p) for p in packs] == [10, 20, 9]  # a long sample has a pack of its own
    assert [p.bounds for p in packs] == [(0, 3, 6, 10), (0, 20), (0, 2, 7, 9)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4), st.integers(5, 20))
def test_processes_share_a_step(lengths: list[int], world: int, micro_tokens: int) -> None:
    samples = [sample(length) for length in lengths]
    dealt = [deal(samples, micro_tokens, rank, world) for rank in range(world)]
    assert len({len(packs) for packs in dealt}) == 1, "every process has as many packs"
    counted = sorted(n for packs in dealt for p in packs if p.share for n in _lengths(p.batch))
    assert counted == sorted(lengths)
    assert {p.share for packs in dealt for p in packs} <= {0.0, 1.0}


def test_samples_that_are_compared_stay_together() -> None:
    samples = [sample(n) for n in (4, 5, 6)]
    (one,) = deal(samples, 5, rank=1, world=2, together=True)
    assert len(one.batch) == 15 and one.share == 0.5


def _lengths(batch: Batch) -> list[int]:
    return [b - a for a, b in zip(batch.bounds, batch.bounds[1:], strict=False)]
