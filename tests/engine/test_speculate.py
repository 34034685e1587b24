"""Guesses from what came before: the fast look-up says what a plain search says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.engine.speculate import PromptLookup


def searched(tokens: list[int], most: int, longest: int, shortest: int) -> list[int]:
    """The plain search: the latest earlier place of the longest end, and what stood after it, over and over."""
    for size in range(longest, shortest - 1, -1):
        end = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if len(end) == size and tokens[start : start + size] == end:
                followed = tokens[start + size :]
                return (followed * most)[:most]
    return []


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), max_size=20),
    SIZES,
    st.integers(0, 8),
)
def test_it_proposes_what_a_search_finds(
    prompt: list[int], answer: list[int], sizes: list[int], most: int
) -> None:
    shortest, longest = sizes
    lookup = PromptLookup(prompt, longest=longest, shortest=shortest)
    tokens = list(prompt)
    for token in [*answer, 0]:
        assert lookup.propose(most) == searched(tokens, most, longest, shortest)
        lookup.add(token)
        tokens.append(token)


def test_the_latest_and_the_longest_win() -> None:
    assert PromptLookup([1, 2, 9, 1, 2, 8, 1, 2]).propose(2) == [8, 1]
    assert PromptLookup([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2]).propose(1) == [9]
    assert PromptLookup([1, 2, 3, 4]).propose(4) == []
    assert PromptLookup([1, 9, 1]).propose(4) == []
    assert PromptLookup([1, 9, 1], shortest=1).propose(4) == [9, 1, 9, 1]


def test_a_guess_ends_before_what_no_answer_holds() -> None:
    prompt = [1, 2, 3, 77, 77, 4, 1, 2]
    assert PromptLookup(prompt, never=[77]).propose(5) == [3]
    assert PromptLookup([1, 2, 77, 1, 2], never=[77]).propose(5) == []


def test_sizes_that_mean_nothing() -> None:
    for longest, shortest in ((2, 3), (2, 0)):
        with pytest.raises(ValueError, match="shortest"):
            PromptLookup([], longest=longest, shortest=shortest)
