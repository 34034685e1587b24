"""Draft tokens by prompt lookup: the fast lookup equals a plain search."""

import random

from hypothesis import given
from hypothesis import strategies as st

from polyphi.engine.prompt_lookup import (
    ACCEPTANCE,
    CANDIDATES,
    MAX_MATCH,
    PromptLookup,
)


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
