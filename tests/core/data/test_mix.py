"""The order of draws: shares, epochs, random access."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyphi.data.mix import Order

SPEECH = {"asr": 28, "ast": 28, "sqa": 26, "summary": 1, "understanding": 17, "safety": 1}


def test_any_draw_is_the_same_however_one_gets_there() -> None:
    sizes = dict.fromkeys(SPEECH, 40)
    walked = Order(SPEECH, sizes, seed=3)
    drawn = [walked.draw(n) for n in range(500)]
    for n in (499, 0, 250, 251, 7, 499):
        assert walked.draw(n) == drawn[n] == Order(SPEECH, sizes, seed=3).draw(n)
    assert Order(SPEECH, sizes, seed=3).draw(10**12)[0] in SPEECH  # no walk to get there


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 400))
def test_seeking_equals_walking_for_any_weights(weights: list[float], n: int) -> None:
    shares = {str(i): w for i, w in enumerate(weights)}
    walked = Order(shares, dict.fromkeys(shares, 9), seed=0)
    expected = [walked.draw(i) for i in range(n + 1)][-1]
    assert Order(shares, dict.fromkeys(shares, 9), seed=0).draw(n) == expected


def test_every_prefix_has_the_shares() -> None:
    order = Order(SPEECH, dict.fromkeys(SPEECH, 40), seed=0)
    drawn: Counter[str] = Counter()
    for n in range(1010):
        drawn[order.draw(n)[0]] += 1
        assert all(
            abs(drawn[name] - weight / 101 * (n + 1)) < 1.5 for name, weight in SPEECH.items()
        )
    assert drawn == {name: 10 * weight for name, weight in SPEECH.items()}


def test_an_epoch_brings_every_row_once_in_an_order_of_its_own() -> None:
    order = Order({"a": 1, "b": 3}, {"a": 5, "b": 7}, seed=0)
    rows = [row for name, row in (order.draw(n) for n in range(56)) if name == "b"]
    epochs = [rows[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_the_seed_changes_rows_but_not_turns() -> None:
    one, two = (Order({"a": 1, "b": 1}, {"a": 50, "b": 50}, seed) for seed in (1, 2))
    first, second = ([order.draw(n) for n in range(20)] for order in (one, two))
    assert [name for name, _ in first] == [name for name, _ in second]
    assert first != second


def test_an_empty_corpus_is_named() -> None:
    with pytest.raises(ValueError, match="rows: b"):
        Order({"a": 1, "b": 1}, {"a": 1, "b": 0}, seed=0)


def test_a_curriculum_is_read_in_its_own_order_once() -> None:
    order = Order({"a": 1, "b": 1}, {"a": 20, "b": 20}, seed=0, curriculum=("b",))
    drawn = [order.draw(n) for n in range(80)]
    first, second = (
        [row for name, row in part if name == "b"] for part in (drawn[:40], drawn[40:])
    )
    assert first == list(range(20))
    assert sorted(second) == first != second
    assert [row for name, row in drawn[:40] if name == "a"] != first


def test_a_late_corpus_joins_after_so_many_draws_of_the_others() -> None:
    order = Order({"a": 3, "b": 1, "c": 1}, dict.fromkeys("abc", 9), seed=0, late={"c": 40})
    names = [order.draw(n)[0] for n in range(90)]
    assert 40 <= names.index("c") <= 44
    assert Counter(names[:40]) == {"a": 30, "b": 10}
    assert Counter(names[40:]) == {"a": 30, "b": 10, "c": 10}


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 90)), min_size=1, max_size=5),
    st.integers(0, 300),
)
def test_seeking_equals_walking_with_late_corpora(corpora: list[tuple[float, int]], n: int) -> None:
    shares = {"first": 1.0} | {str(i): weight for i, (weight, _) in enumerate(corpora)}
    late = {str(i): start for i, (_, start) in enumerate(corpora)}
    walked, seeking = (Order(shares, dict.fromkeys(shares, 9), 0, late=late) for _ in range(2))
    expected = [walked.draw(i) for i in range(n + 1)][-1]
    assert seeking.draw(n) == expected


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100), st.none() | st.integers(0, 90), st.none() | st.just(9)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 300),
)
def test_an_endless_corpus_gives_its_rows_in_order(
    corpora: list[tuple[float, int | None, int | None]], n: int
) -> None:
    """`corpora` are (weight, draws before it joins, size)."""
    shares = {"first": 1.0} | {str(i): weight for i, (weight, _, _) in enumerate(corpora)}
    late = {str(i): start for i, (_, start, _) in enumerate(corpora) if start is not None}
    sizes = {"first": None} | {str(i): size for i, (_, _, size) in enumerate(corpora)}
    walked, seeking = (Order(shares, sizes, 0, late=late) for _ in range(2))
    draws = [walked.draw(i) for i in range(n + 1)]
    for name in (name for name, size in sizes.items() if size is None):
        rows = [row for other, row in draws if other == name]
        assert rows == list(range(len(rows)))
    assert seeking.draw(n) == draws[n]


@given(st.integers(1, 700), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_in_windows_brings_every_row_once(size: int, blocks: int, seed: int) -> None:
    order = Order({"a": 1}, {"a": size}, seed, windows={"a": 64 * blocks})
    drawn = [order.draw(n)[1] for n in range(2 * size)]
    assert sorted(drawn[:size]) == sorted(drawn[size:]) == list(range(size))
    assert size < 5 or drawn[:size] != drawn[size:]
    for start in range(0, size, 64 * blocks):  # at most as many blocks at a time as the window has
        assert len({row // 64 for row in drawn[: min(size, start + 64 * blocks)][start:]}) <= blocks


def test_a_window_as_large_as_the_corpus_changes_nothing() -> None:
    plain, windowed = (Order({"a": 1}, {"a": 99}, 3, windows=w) for w in (None, {"a": 128}))
    assert [plain.draw(n) for n in range(250)] == [windowed.draw(n) for n in range(250)]


def test_workers_receive_no_permutations() -> None:
    """A permutation of a million rows has 8 MB; each worker makes its own."""
    order = Order({"a": 1, "b": 1}, {"a": 10**6, "b": 10**6}, seed=0)
    draws = [order.draw(n) for n in range(4)]
    state = pickle.dumps(order)
    assert len(state) < 10_000
    copy: Order = pickle.loads(state)
    assert [copy.draw(n) for n in range(4)] == draws
