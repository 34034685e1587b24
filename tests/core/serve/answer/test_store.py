"""Stored responses: each owner's own, within limits of bytes, number and age."""

import time
from collections.abc import Callable

import pytest

from polyphi.serve.answer import store as module
from polyphi.serve.answer.store import (
    BLOB,
    ITEM_OVERHEAD,
    MAX_SECONDS,
    OVERHEAD,
    Blob,
    ResponseStore,
    StoredItem,
    StoredResponse,
    stored_item,
)

A, B = b"a", b"b"
RESPONSE = (b"{}",)


def store_of(total: int, clock: Callable[[], float] = time.monotonic) -> ResponseStore:
    """A store of `total` bytes, of which a quarter is for each owner."""
    return ResponseStore(total, clock)


def put(
    store: ResponseStore, id: str, previous: str | None = None, owner: bytes = A, size: int = 10_000
) -> bool:
    """Stores a response that counts `size` bytes."""
    items = StoredItem("msg", (b"x" * (size - OVERHEAD - ITEM_OVERHEAD - len(RESPONSE[0])),))
    stored = StoredResponse(id, previous, (items,))
    return store.add(owner, stored) and store.complete(owner, id, RESPONSE)


def has(store: ResponseStore, *ids: str, owner: bytes = A) -> list[bool]:
    return [store.get(owner, id) is not None for id in ids]


def test_owners_see_their_own() -> None:
    store = store_of(1 << 20)
    assert put(store, "1") and (store.count, store.bytes) == (1, 10_000)
    assert has(store, "1") == [True] and has(store, "1", owner=B) == [False]
    assert not store.delete(B, "1") and store.delete(A, "1") and not store.delete(A, "1")
    assert has(store, "1") == [False] and store.count == store.bytes == 0


def test_a_response_is_seen_when_it_has_ended() -> None:
    store = store_of(1 << 20)
    assert store.add(A, StoredResponse("1", None, ())) and store.bytes > 0
    assert has(store, "1") == [False] and not store.delete(A, "1")
    with pytest.raises(KeyError):
        store.chain(A, "1")
    store.discard(B, "1")
    assert store.complete(A, "1", RESPONSE) and has(store, "1") == [True]
    store.discard(A, "1")
    assert has(store, "1") == [True]
    store.add(A, StoredResponse("2", None, ()))
    store.discard(A, "2")
    assert not store.complete(A, "2", RESPONSE) and not store.complete(B, "1", RESPONSE)
    assert store.delete(A, "1") and store.count == store.bytes == 0


def test_bytes_are_limited_for_each_owner_and_all() -> None:
    store = store_of(100_000)
    assert not put(store, "large", size=25_001) and store.bytes == 0
    store.add(A, StoredResponse("grows", None, ()))
    assert not store.complete(A, "grows", (b"x" * 25_000,)) and store.bytes == 0
    assert all(put(store, str(number)) for number in range(5))
    assert has(store, *"01234") == [False] * 3 + [True] * 2
    for owner in range(20):
        assert put(store, "x", owner=bytes([owner]))
        assert store.bytes <= 100_000 and store.count == store.bytes // 10_000
    # The owner with most bytes has lost its oldest first.
    assert has(store, "3") == [False] and has(store, "x", owner=bytes([19])) == [True]


def test_what_is_used_stays() -> None:
    store = store_of(100_000)
    assert put(store, "1") and put(store, "2")
    store.get(A, "1")
    assert put(store, "3")
    assert has(store, "1", "2", "3") == [True, False, True]


def test_a_chain_is_dropped_from_its_end() -> None:
    store = store_of(160_000)
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
    store = store_of(1 << 30, clock=lambda: now)
    assert all(put(store, str(number)) for number in range(5))
    assert has(store, "1", "2") == [False, True]
    now = MAX_SECONDS
    assert has(store, "2") == [True]
    now += 100
    assert has(store, "3", "2") == [False, True]
    now += MAX_SECONDS + 1
    assert has(store, "2") == [False] and store.count == store.bytes == 0


def with_medium(id: str, medium: bytes) -> StoredResponse:
    return StoredResponse(id, None, (stored_item(f"{id} item", (b'{"a":', medium, b"}")),))


def test_a_medium_is_stored_once_for_each_owner() -> None:
    medium = bytes(range(256)) * 400
    store = store_of(4_000_000)
    for number in range(5):
        copy = bytes(bytearray(medium))
        assert store.add(A, with_medium(str(number), copy)) and store.complete(
            A, str(number), RESPONSE
        )
        (item,) = store.get(A, str(number)).items
        assert b"".join(item.json) == b'{"a":' + medium + b"}" and item.id == f"{number} item"
    blobs = {
        id(p) for n in range(5) for p in store.get(A, str(n)).items[0].pieces if type(p) is Blob
    }
    assert len(blobs) == 1
    assert len(medium) < store.bytes < len(medium) + 5 * (OVERHEAD + 2 * ITEM_OVERHEAD)
    one_owner = store.bytes
    assert store.add(B, with_medium("0", medium))
    assert store.bytes > one_owner + len(medium), "an owner's share doesn't depend on others"
    store.discard(B, "0")
    for number in range(4):
        assert store.delete(A, str(number)) and store.bytes > len(medium)
    assert store.delete(A, "4") and store.bytes == 0


def test_short_pieces_are_joined() -> None:
    long = b"x" * BLOB
    item = stored_item("1", (b"a", b"b", long, long, b"c"))
    assert b"".join(item.json) == b"ab" + 2 * long + b"c" and len(item.pieces) <= 5
    assert StoredResponse("1", None, (item,)).size < 2 * BLOB + OVERHEAD


def test_memory_counts_while_a_removed_response_is_read() -> None:
    store = store_of(100_000)
    assert put(store, "1", size=20_000)
    stored = store.get(A, "1")
    with store.reading(A, stored), store.reading(A, stored):
        assert store.bytes == 20_000, "readers share the stored bytes"
        assert store.delete(A, "1") and (store.count, store.bytes) == (0, 20_000)
        assert not put(store, "2"), "the owner's share is used up"
        assert put(store, "3", size=5_000) and store.bytes == 25_000
        assert put(store, "4", owner=B)
    assert has(store, "3") == [True] and store.bytes == 15_000


def test_responses_that_are_read_leave_memory_to_other_owners() -> None:
    store = store_of(100_000)
    readers = []
    for number in range(4):
        owner = bytes([number])
        assert put(store, "1", owner=owner, size=25_000)
        readers.append(store.reading(owner, store.get(owner, "1")))
        readers[-1].__enter__()
        assert store.delete(owner, "1")
    assert not put(store, "1", owner=A) and (store.count, store.bytes) == (0, 100_000)
    readers[0].__exit__(None, None, None)
    assert put(store, "1", owner=A) and store.bytes == 85_000
