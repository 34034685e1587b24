"""Speculative decoding: the fast lookup equals a plain search, and only draft tokens that pay off are run."""

import random

from hypothesis import given
from hypothesis import strategies as st

from polyphi.engine.prompt_lookup import (
    ACCEPTANCE,
    CANDIDATES,
    MAX_MATCH,
    DraftToken,
    PromptLookup,
)
from polyphi.engine.speculate import draft_lengths


def drafted(lookup: PromptLookup, most: int) -> list[int]:
    return [token for token, _ in lookup.propose(most)]


def agreed(tokens: list[int], at: int) -> int:
    """The length of the match that ends at `at`, at most `MAX_MATCH`."""
    count = 0
    while count < min(MAX_MATCH, at + 1) and tokens[at - count] == tokens[-1 - count]:
        count += 1
    return count


@given(
    st.lists(st.integers(0, 3), max_size=CANDIDATES + 1),
    st.lists(st.integers(0, 3), max_size=20),
    st.integers(0, 12),
)
def test_it_proposes_what_a_search_finds(prompt: list[int], answer: list[int], most: int) -> None:
    """The latest of the longest matches, and the tokens after it, repeated."""
    lookup, tokens = PromptLookup(prompt), list(prompt)
    last = None  # the previous match
    for token in [*answer, 0]:
        tried = [p for p in reversed(range(len(tokens) - 1)) if tokens[p] == tokens[-1]]
        tried = tried[:CANDIDATES]
        follows = last is not None and tokens[last + 1] == tokens[-1]
        tried = [last + 1, *tried] if last is not None and follows else tried
        last = max(tried, key=lambda p: agreed(tokens, p), default=None)
        followed = [] if last is None else tokens[last + 1 :]
        assert drafted(lookup, most) == (followed * most)[:most]
        lookup.add(token)
        tokens.append(token)


def test_the_longest_and_the_latest_win() -> None:
    assert drafted(PromptLookup([1, 2, 9, 1, 2, 8, 1, 2]), 2) == [8, 1]
    assert drafted(PromptLookup([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2]), 1) == [9]
    assert drafted(PromptLookup([1, 9, 1]), 4) == [9, 1, 9, 1]
    assert drafted(PromptLookup([1, 2, 3, 4]), 4) == []
    assert drafted(PromptLookup([]), 4) == []


def test_a_copy_is_followed_however_common_its_tokens_are() -> None:
    """It is older than all occurrences that are searched."""
    copied = [1, 2, 3, 4, 5, 0, 6, 7]
    lookup = PromptLookup([*copied, *[0, 9] * (2 * CANDIDATES), *copied[:5]])
    assert drafted(lookup, 3) == [0, 6, 7]
    lookup.add(0)
    assert drafted(lookup, 2) == [6, 7]


def test_a_draft_ends_before_tokens_that_no_answer_has() -> None:
    assert drafted(PromptLookup([1, 2, 3, 77, 77, 4, 1, 2], never=[77]), 5) == [3]
    assert drafted(PromptLookup([1, 2, 77, 1, 2], never=[77]), 5) == []


def test_chances_rise_with_the_match_and_fall_with_the_distance() -> None:
    first = []
    for count in (1, 2, 4, 8):
        same = list(range(10, 10 + count))
        lookup = PromptLookup([1, *same, 7, 7, 7, 2, *same])
        chances = [chance for _, chance in lookup.propose(6)]
        assert chances == sorted(chances, reverse=True)
        first.append(chances[0])
    assert tuple(first) == ACCEPTANCE


def test_a_request_tracks_the_acceptance_rate() -> None:
    periodic, noisy = PromptLookup([1, 2, 3, 4] * 3), PromptLookup([1, 2, 3, 4] * 3)
    for _ in range(10):
        for token in (1, 2, 3, 4):
            periodic.add(token)
    assert periodic.propose(8)[-1][1] > 0.9
    dice = random.Random(0)
    for _ in range(80):
        noisy.add(dice.randrange(1, 5))
    assert all(chance < 0.5 for _, chance in noisy.propose(1))


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
