"""Guesses from what came before: the fast look-up says what a plain search says, and only those are run that pay."""

import random

from hypothesis import given
from hypothesis import strategies as st

from polyphi.engine.speculate import LONGEST, PLACES, RIGHT, Guess, PromptLookup, worth


def guessed(lookup: PromptLookup, most: int) -> list[int]:
    return [token for token, _ in lookup.propose(most)]


def agreed(tokens: list[int], at: int) -> int:
    """How many tokens up to place `at` are those up to the newest, as far as it is looked."""
    count = 0
    while count < min(LONGEST, at + 1) and tokens[at - count] == tokens[-1 - count]:
        count += 1
    return count


@given(
    st.lists(st.integers(0, 3), max_size=PLACES + 1),
    st.lists(st.integers(0, 3), max_size=20),
    st.integers(0, 12),
)
def test_it_proposes_what_a_search_finds(prompt: list[int], answer: list[int], most: int) -> None:
    """The latest of the places that agree best, and what stood behind it, over and over."""
    lookup, tokens = PromptLookup(prompt), list(prompt)
    last = None  # the place that decided last time
    for token in [*answer, 0]:
        tried = [p for p in reversed(range(len(tokens) - 1)) if tokens[p] == tokens[-1]][:PLACES]
        follows = last is not None and tokens[last + 1] == tokens[-1]
        tried = [last + 1, *tried] if last is not None and follows else tried
        last = max(tried, key=lambda p: agreed(tokens, p), default=None)
        followed = [] if last is None else tokens[last + 1 :]
        assert guessed(lookup, most) == (followed * most)[:most]
        lookup.add(token)
        tokens.append(token)


def test_the_longest_and_the_latest_win() -> None:
    assert guessed(PromptLookup([1, 2, 9, 1, 2, 8, 1, 2]), 2) == [8, 1]
    assert guessed(PromptLookup([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2]), 1) == [9]
    assert guessed(PromptLookup([1, 9, 1]), 4) == [9, 1, 9, 1]
    assert guessed(PromptLookup([1, 2, 3, 4]), 4) == []
    assert guessed(PromptLookup([]), 4) == []


def test_a_copy_is_followed_however_common_its_tokens_are() -> None:
    """Its place is older than all that are looked at anew."""
    copied = [1, 2, 3, 4, 5, 0, 6, 7]
    lookup = PromptLookup([*copied, *[0, 9] * (2 * PLACES), *copied[:5]])
    assert guessed(lookup, 3) == [0, 6, 7]
    lookup.add(0)
    assert guessed(lookup, 2) == [6, 7]


def test_a_guess_ends_before_what_no_answer_holds() -> None:
    assert guessed(PromptLookup([1, 2, 3, 77, 77, 4, 1, 2], never=[77]), 5) == [3]
    assert guessed(PromptLookup([1, 2, 77, 1, 2], never=[77]), 5) == []


def test_the_longer_it_agrees_the_surer_it_is_and_the_further_the_less() -> None:
    sure = []
    for count in (1, 2, 4, 8):
        same = list(range(10, 10 + count))
        lookup = PromptLookup([1, *same, 7, 7, 7, 2, *same])
        chances = [chance for _, chance in lookup.propose(6)]
        assert chances == sorted(chances, reverse=True)
        sure.append(chances[0])
    assert tuple(sure) == RIGHT


def test_a_request_learns_how_often_the_lookup_is_right() -> None:
    right, wrong = PromptLookup([1, 2, 3, 4] * 3), PromptLookup([1, 2, 3, 4] * 3)
    for _ in range(10):
        for token in (1, 2, 3, 4):
            right.add(token)
    assert right.propose(8)[-1][1] > 0.9
    dice = random.Random(0)
    for _ in range(80):
        wrong.add(dice.randrange(1, 5))
    assert all(chance < 0.5 for _, chance in wrong.propose(1))


PRICE = 0.08


def chain(chance: float, count: int = 15) -> list[Guess]:
    """Guesses that are each right with `chance` if those before are."""
    return [(0, chance ** (i + 1)) for i in range(count)]


def speed(proposed: list[list[Guess]], counts: list[int]) -> float:
    """Tokens that are expected of a step, for the time that it takes."""
    drawn = sum(1 + sum(p for _, p in g[:n]) for g, n in zip(proposed, counts, strict=True))
    return drawn / (1 + PRICE * (len(proposed) + sum(counts) - 1))


CHAINS = st.lists(st.floats(0, 1).map(lambda p: chain(p, 5)), min_size=1, max_size=6)


@given(CHAINS)
def test_no_other_number_of_guesses_would_be_quicker(proposed: list[list[Guess]]) -> None:
    counts = worth(proposed, PRICE)
    best = speed(proposed, counts)
    assert best >= speed(proposed, [0] * len(proposed)) - 1e-9
    for i in range(len(proposed)):
        for other in range(6):
            changed = [*counts[:i], other, *counts[i + 1 :]]
            assert speed(proposed, changed) <= best + 1e-9


def test_unlikely_guesses_are_not_run() -> None:
    assert worth([chain(PRICE / 2)], PRICE) == [0]
    assert worth([[], chain(1.0), []], PRICE) == [0, 15, 0]
    assert worth([], PRICE) == []


def test_the_more_sequences_run_the_fewer_guesses_each_has() -> None:
    """Weights that are read anyway serve others then."""
    each = [max(worth([chain(0.7)] * sequences, PRICE)) for sequences in (1, 2, 4, 8, 16, 32)]
    assert each == sorted(each, reverse=True)
    assert each[0] >= 3 and each[-1] == 0


def test_where_nothing_is_right_hardly_anything_is_run() -> None:
    """A text without a pattern in few different tokens, which always finds a place that agrees: the price of all its
    guesses is some percent at most."""
    dice = random.Random(1)
    lookup, run, steps = PromptLookup([]), 0, 400
    for _ in range(steps):
        proposed = lookup.propose(15)
        run += worth([proposed], PRICE)[0]
        taken = {token for token, _ in proposed[:1]}
        lookup.add(dice.choice([t for t in range(50) if t not in taken]))
    assert PRICE * run / steps < 0.02
