"""Responses in memory, so that a client can continue, read or delete them by their id.

>>> store = ResponseStore(256 << 20)
>>> items = tuple(stored_item(value["id"], json_pieces(value)) for value in values)
>>> store.add(owner, StoredResponse("resp_1", previous=None, items=items))        # while it is generated
>>> store.complete(owner, "resp_1", (b"{...}",))
>>> with store.reading(owner, store.get(owner, "resp_1")): ...                    # its memory stays counted

An owner (an API key, or an address where there are no keys) sees only its own responses. Each may use its share of
the memory, and `MAX_RESPONSES`; what was used least recently is dropped first, and everything unused for `MAX_SECONDS`.
Long texts and media are stored once for each owner, however many of its responses contain them.
"""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

MAX_RESPONSES = 1024
"""Maximum number of responses of one owner."""
MAX_SECONDS = 24 * 3600.0
EXPIRE_SECONDS = 60.0
"""Seconds between two searches for unused responses."""
OVERHEAD = 4096
"""Bytes counted for a response in addition to its JSON."""
ITEM_OVERHEAD = 512
"""Bytes counted for each item of a response, and for each blob, in addition to its JSON."""
BLOB = 4096
"""Minimum bytes of a piece of JSON that is stored once."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A piece of JSON, such as a medium as base64, that an owner's responses share under its digest."""

    digest: bytes
    json: bytes


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An input item as JSON in pieces."""

    id: str
    pieces: tuple[bytes | Blob, ...]

    @property
    def json(self) -> list[bytes]:
        """The pieces as bytes; those of blobs are the stored ones, not copies."""
        return [piece.json if isinstance(piece, Blob) else piece for piece in self.pieces]


def stored_item(id: str, pieces: Iterable[bytes]) -> StoredItem:
    """An item whose JSON comes in pieces; the long ones become blobs."""
    result: list[bytes | Blob] = []
    short = bytearray()
    for piece in pieces:
        if len(piece) < BLOB:
            short += piece
            continue
        result += [bytes(short), Blob(hashlib.sha256(piece).digest(), piece)]
        short = bytearray()
    return StoredItem(id, (*result, bytes(short)))


@dataclass(frozen=True)
class StoredResponse:
    """The pieces of a response as JSON (none until it has ended), its own input `items`, and the id of the response
    that it continues."""

    id: str
    previous: str | None
    items: tuple[StoredItem, ...]
    response: tuple[bytes, ...] = ()

    @property
    def sizes(self) -> dict[object, int]:
        """The bytes of the response's parts by key: of each blob by its digest, and of the rest."""
        own = OVERHEAD + sum(map(len, self.response))
        blobs: dict[object, int] = {}
        for item in self.items:
            own += ITEM_OVERHEAD
            for piece in item.pieces:
                if isinstance(piece, Blob):
                    blobs[piece.digest] = len(piece.json) + ITEM_OVERHEAD
                else:
                    own += len(piece)
        return {**blobs, (self.id, bool(self.response)): own}

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


class _Owner:
    """The responses of one owner with the time of their last use, the least recently used first. `bytes`: of them and
    of those that were removed while they are being read."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, tuple[StoredResponse, float]] = OrderedDict()
        self.bytes = 0
        self._references: Counter[object] = Counter()
        self._blobs: dict[bytes, Blob] = {}

    def shared(self, stored: StoredResponse) -> StoredResponse:
        """A copy of the response with the blobs that this owner has already."""

        def known(piece: bytes | Blob) -> bytes | Blob:
            return self._blobs.get(piece.digest, piece) if isinstance(piece, Blob) else piece

        items = (StoredItem(item.id, tuple(map(known, item.pieces))) for item in stored.items)
        return replace(stored, items=tuple(items))

    def retain(self, stored: StoredResponse) -> int:
        """Adds a reference to all parts of a response; returns by how many bytes the memory grows."""
        before = self.bytes
        for key, size in stored.sizes.items():
            self.bytes += 0 if self._references[key] else size
            self._references[key] += 1
        for item in stored.items:
            self._blobs |= {piece.digest: piece for piece in item.pieces if isinstance(piece, Blob)}
        return self.bytes - before

    def release(self, stored: StoredResponse) -> int:
        """Drops a reference to all parts of a response; returns by how many bytes the memory shrinks."""
        before = self.bytes
        for key, size in stored.sizes.items():
            self._references[key] -= 1
            if not self._references[key]:
                self.bytes -= size
                del self._references[key]
                if isinstance(key, bytes):
                    del self._blobs[key]
        return before - self.bytes


class ResponseStore:
    """Stored responses: at most `total` bytes for all owners, and a quarter of that for each; 0 stores nothing. Used
    by one thread, the event loop's. Other threads may read `count` and `bytes`: of all responses, also of those that
    haven't ended."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = self.bytes = 0
        self._total, self._clock = total, clock
        self._owners: dict[bytes, _Owner] = {}
        self._expired_at = clock()

    @property
    def max_size(self) -> int:
        """Most bytes of one owner, and so of one response."""
        return self._total // 4

    def add(self, owner: bytes, stored: StoredResponse) -> bool:
        """Stores a response; False if there is no memory for it."""
        self._expire()
        if stored.size > self.max_size:
            return False
        entry = self._owners.setdefault(owner, _Owner())
        stored = entry.shared(stored)
        entry.responses[stored.id] = stored, self._clock()
        self.count += 1
        self.bytes += entry.retain(stored)
        while entry.responses and (
            entry.bytes > self.max_size or len(entry.responses) > MAX_RESPONSES
        ):
            self._drop_oldest(owner)
        while self.bytes > self._total and (owners := self._owners_with_responses()):
            self._drop_oldest(max(owners, key=lambda name: self._owners[name].bytes))
        return stored.id in entry.responses

    def complete(self, owner: bytes, id: str, response: tuple[bytes, ...]) -> bool:
        """Stores the JSON of a response that has ended; False if it was dropped meanwhile, or is too large."""
        entry = self._owners.get(owner)
        if entry is None or id not in entry.responses:
            return False
        stored, _ = entry.responses[id]
        self._remove(owner, id)
        if not self.add(owner, replace(stored, response=response)):
            return False
        with suppress(KeyError):  # those before it count as used
            self.chain(owner, id)
        return True

    def discard(self, owner: bytes, id: str) -> None:
        """Removes a response that didn't end."""
        entry = self._owners.get(owner)
        if entry is not None and id in entry.responses and not entry.responses[id][0].response:
            self._remove(owner, id)

    def get(self, owner: bytes, id: str) -> StoredResponse | None:
        """A response that has ended."""
        self._expire()
        entry = self._owners.get(owner)
        if entry is None or id not in entry.responses or not entry.responses[id][0].response:
            return None
        stored, _ = entry.responses[id]
        entry.responses[id] = stored, self._clock()
        entry.responses.move_to_end(id)
        return stored

    @contextmanager
    def reading(self, owner: bytes, stored: StoredResponse) -> Iterator[None]:
        """Counts the memory of a response while a client reads it, also if it is removed meanwhile."""
        entry = self._owners.setdefault(owner, _Owner())
        self.bytes += entry.retain(stored)
        try:
            yield
        finally:
            self.bytes -= entry.release(stored)

    def chain(self, owner: bytes, id: str) -> list[StoredResponse]:
        """A response and those before it, the first one first; all count as used, so that none is dropped before those
        that continue it. Raises KeyError with the id of a missing one."""
        chain: list[StoredResponse] = []
        following: str | None = id
        while following is not None:
            stored = self.get(owner, following)
            if stored is None:
                raise KeyError(following)
            chain.append(stored)
            following = stored.previous
        return chain[::-1]

    def delete(self, owner: bytes, id: str) -> bool:
        """Whether the response was stored."""
        if self.get(owner, id) is None:
            return False
        self._remove(owner, id)
        return True

    def _expire(self) -> None:
        now = self._clock()
        if now - self._expired_at < EXPIRE_SECONDS:
            return
        self._expired_at, oldest = now, now - MAX_SECONDS
        for owner in list(self._owners):
            entry = self._owners[owner]
            while entry.responses and next(iter(entry.responses.values()))[1] < oldest:
                self._drop_oldest(owner)
            if not entry.bytes:
                del self._owners[owner]

    def _owners_with_responses(self) -> list[bytes]:
        return [owner for owner, entry in self._owners.items() if entry.responses]

    def _drop_oldest(self, owner: bytes) -> None:
        self._remove(owner, next(iter(self._owners[owner].responses)))

    def _remove(self, owner: bytes, id: str) -> None:
        entry = self._owners[owner]
        stored, _ = entry.responses.pop(id)
        self.count -= 1
        self.bytes -= entry.release(stored)
