"""Speculative decoding: only draft tokens that pay off are run."""

import random

from hypothesis import given
from hypothesis import strategies as st

from polyphi.engine.prompt_lookup import DraftToken, PromptLookup
from polyphi.engine.speculate import draft_lengths

COST = 0.08


def chain(chance: float, count: int = 15) -> list[DraftToken]:
    """Draft tokens that are each accepted with `chance` if those before are."""
    return [(0, chance ** (i + 1)) for i in range(count)]


def speed(proposed: list[list[DraftToken]], counts: list[int]) -> float:
    """Expected tokens of a step, divided by its time."""
    expected = sum(1 + sum(p for _, p in g[:n]) for g, n in zip(proposed, counts, strict=True))
    return expected / (1 + COST * (len(proposed) + sum(counts) - 1))


CHAINS = st.lists(st.floats(0, 1).map(lambda p: chain(p, 5)), min_size=1, max_size=6)


@given(CHAINS)
def test_no_other_number_of_draft_tokens_would_be_faster(proposed: list[list[DraftToken]]) -> None:
    counts = draft_lengths(proposed, COST)
    best = speed(proposed, counts)
    assert best >= speed(proposed, [0] * len(proposed)) - 1e-9
    for i in range(len(proposed)):
        for other in range(6):
            changed = [*counts[:i], other, *counts[i + 1 :]]
            assert speed(proposed, changed) <= best + 1e-9


def test_unlikely_draft_tokens_are_not_run() -> None:
    assert draft_lengths([chain(COST / 2)], COST) == [0]
    assert draft_lengths([[], chain(1.0), []], COST) == [0, 15, 0]
    assert draft_lengths([], COST) == []


def test_the_more_sequences_run_the_fewer_draft_tokens_each_has() -> None:
    """The cost of reading the weights is shared then."""
    each = [
        max(draft_lengths([chain(0.7)] * sequences, COST)) for sequences in (1, 2, 4, 8, 16, 32)
    ]
    assert each == sorted(each, reverse=True)
    assert each[0] >= 3 and each[-1] == 0


def test_a_sequence_without_repetition_runs_few_draft_tokens() -> None:
    """A text without a pattern in few different tokens, which always has a match: the cost of all its draft tokens is
    2 % at most."""
    dice = random.Random(1)
    lookup, run, steps = PromptLookup([]), 0, 400
    for _ in range(steps):
        proposed = lookup.propose(15)
        run += draft_lengths([proposed], COST)[0]
        first = {token for token, _ in proposed[:1]}
        lookup.add(dice.choice([t for t in range(50) if t not in first]))
    assert COST * run / steps < 0.02
