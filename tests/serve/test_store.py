"""Stored responses: each owner's own, within limits of bytes, number and age."""

import pytest

from polyphi.serve import store as module
from polyphi.serve.store import MAX_SECONDS, ResponseStore, StoredResponse

A, B = b"a", b"b"
RESPONSE = b"{}"


def put(
    store: ResponseStore, id: str, previous: str | None = None, owner: bytes = A, size: int = 10_000
) -> bool:
    """Stores a response that counts `size` bytes."""
    items = b"x" * (size - module.OVERHEAD - len(RESPONSE))
    stored = StoredResponse(id, previous, items)
    return store.add(owner, stored) and store.complete(owner, id, RESPONSE)


def has(store: ResponseStore, *ids: str, owner: bytes = A) -> list[bool]:
    return [store.get(owner, id) is not None for id in ids]


def test_owners_see_their_own() -> None:
    store = ResponseStore(1 << 20)
    assert put(store, "1") and (store.count, store.bytes) == (1, 10_000)
    assert has(store, "1") == [True] and has(store, "1", owner=B) == [False]
    assert not store.delete(B, "1") and store.delete(A, "1") and not store.delete(A, "1")
    assert has(store, "1") == [False] and store.count == store.bytes == 0


def test_a_response_is_seen_when_it_has_ended() -> None:
    store = ResponseStore(1 << 20)
    assert store.add(A, StoredResponse("1", None, b"[]")) and store.bytes > 0
    assert has(store, "1") == [False] and not store.delete(A, "1")
    with pytest.raises(KeyError):
        store.chain(A, "1")
    store.discard(B, "1")
    assert store.complete(A, "1", RESPONSE) and has(store, "1") == [True]
    store.discard(A, "1")
    assert has(store, "1") == [True]
    store.add(A, StoredResponse("2", None, b"[]"))
    store.discard(A, "2")
    assert not store.complete(A, "2", RESPONSE) and not store.complete(B, "1", RESPONSE)
    assert store.delete(A, "1") and store.count == store.bytes == 0


def test_bytes_are_limited_for_each_owner_and_all() -> None:
    store = ResponseStore(100_000)
    assert not put(store, "large", size=25_001) and store.bytes == 0
    store.add(A, StoredResponse("grows", None, b"[]"))
    assert not store.complete(A, "grows", b"x" * 25_000) and store.bytes == 0
    assert all(put(store, str(number)) for number in range(5))
    assert has(store, *"01234") == [False] * 3 + [True] * 2
    for owner in range(20):
        assert put(store, "x", owner=bytes([owner]))
        assert store.bytes <= 100_000 and store.count == store.bytes // 10_000
    # The owner with most bytes has lost its oldest first.
    assert has(store, "3") == [False] and has(store, "x", owner=bytes([19])) == [True]


def test_what_is_used_stays() -> None:
    store = ResponseStore(100_000)
    assert put(store, "1") and put(store, "2")
    store.get(A, "1")
    assert put(store, "3")
    assert has(store, "1", "2", "3") == [True, False, True]


def test_a_chain_is_dropped_from_its_end() -> None:
    store = ResponseStore(160_000)
    for id, previous in (("1", None), ("2", "1"), ("3", "2")):
        assert put(store, id, previous)
    assert [stored.id for stored in store.chain(A, "3")] == ["1", "2", "3"]
    assert put(store, "4", "3") and put(store, "other")
    assert [stored.id for stored in store.chain(A, "2")] == ["1", "2"]
    with pytest.raises(KeyError):
        store.chain(A, "4")
    with pytest.raises(KeyError):
        store.chain(B, "1")


def test_number_and_age_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESPONSES", 3)
    now = 0.0
    store = ResponseStore(1 << 30, clock=lambda: now)
    assert all(put(store, str(number)) for number in range(5))
    assert has(store, "1", "2") == [False, True]
    now = MAX_SECONDS
    assert has(store, "2") == [True]
    now += 100
    assert has(store, "3", "2") == [False, True]
    now += MAX_SECONDS + 1
    assert has(store, "2") == [False] and store.count == store.bytes == 0
