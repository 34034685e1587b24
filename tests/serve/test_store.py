"""Stored responses: each owner's own, within limits of bytes, number and age."""

import pytest

from polyphi.serve import store as module
from polyphi.serve.store import MAX_SECONDS, ResponseStore, StoredResponse

A, B = b"a", b"b"


def response(id: str, previous: str | None = None, size: int = 10_000) -> StoredResponse:
    return StoredResponse(id, previous, b"x" * (size - module.OVERHEAD), b"")


def test_owners_see_their_own() -> None:
    store = ResponseStore(1 << 20)
    assert store.add(A, response("1"))
    assert store.get(A, "1") == response("1") and store.get(B, "1") is None
    assert not store.delete(B, "1") and store.delete(A, "1") and not store.delete(A, "1")
    assert store.get(A, "1") is None and store.bytes == 0


def test_bytes_are_limited_for_each_owner_and_all() -> None:
    store = ResponseStore(100_000)
    assert not store.add(A, response("large", size=25_001)) and store.bytes == 0
    for number in range(5):
        assert store.add(A, response(str(number)))
    assert [store.get(A, str(number)) is not None for number in range(5)] == [False] * 3 + [
        True
    ] * 2
    for owner in range(20):
        assert store.add(bytes([owner]), response("x"))
        assert store.bytes <= 100_000
    # The owner with most bytes has lost its oldest first.
    assert store.get(A, "3") is None and store.get(bytes([19]), "x") is not None


def test_what_is_used_stays() -> None:
    store = ResponseStore(100_000)
    store.add(A, response("1"))
    store.add(A, response("2"))
    store.get(A, "1")
    store.add(A, response("3"))
    assert store.get(A, "2") is None and store.get(A, "1") is not None


def test_a_chain_is_dropped_from_its_end() -> None:
    store = ResponseStore(160_000)
    store.add(A, response("1"))
    store.add(A, response("2", "1"))
    store.add(A, response("3", "2"))
    assert [stored.id for stored in store.chain(A, "3")] == ["1", "2", "3"]
    store.add(A, response("4", "3"))
    store.add(A, response("other"))
    assert [stored.id for stored in store.chain(A, "2")] == ["1", "2"]
    with pytest.raises(KeyError):
        store.chain(A, "4")
    with pytest.raises(KeyError):
        store.chain(B, "1")


def test_number_and_age_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESPONSES", 3)
    now = 0.0
    store = ResponseStore(1 << 30, clock=lambda: now)
    for number in range(5):
        store.add(A, response(str(number)))
    assert store.get(A, "1") is None and store.get(A, "2") is not None
    now = MAX_SECONDS
    assert store.get(A, "2") is not None
    now += 100
    assert store.get(A, "3") is None and store.get(A, "2") is not None
    now += MAX_SECONDS + 1
    assert store.get(A, "2") is None and store.bytes == 0
