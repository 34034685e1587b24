"""Responses in memory, so that a client can continue, read or delete them by their id.

>>> store = ResponseStore(256 << 20)
>>> store.add(owner, StoredResponse("resp_1", previous=None, items=b"[...]"))     # while it is generated
>>> store.complete(owner, "resp_1", b"{...}")
>>> [stored.id for stored in store.chain(owner, "resp_1")]

An owner (an API key, or an address where there are no keys) sees only its own responses. Each may use a quarter of the
memory, and `MAX_RESPONSES`; what was used least recently is dropped first, and everything unused for `MAX_SECONDS`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

MAX_RESPONSES = 1024
"""Of one owner."""
MAX_SECONDS = 24 * 3600.0
EXPIRE_SECONDS = 60.0
"""Between two searches for unused responses."""
OVERHEAD = 4096
"""Bytes counted for a response in addition to its JSON."""


@dataclass(frozen=True)
class StoredResponse:
    """A response as JSON (b"" until it has ended), the JSON list of its own input `items`, and the id of the response
    that it continues."""

    id: str
    previous: str | None
    items: bytes
    response: bytes = b""

    @property
    def size(self) -> int:
        return len(self.items) + len(self.response) + OVERHEAD


class _Owner:
    """The responses of one owner with the time of their last use, the least recently used first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, tuple[StoredResponse, float]] = OrderedDict()
        self.bytes = 0

    def remove(self, id: str) -> int:
        """Removes a response and returns its size."""
        stored, _ = self.responses.pop(id)
        self.bytes -= stored.size
        return stored.size


class ResponseStore:
    """At most `max_bytes` for all owners; 0 stores nothing. Used by one thread, the event loop's. Other threads may
    read `count` and `bytes`: of all responses, also of those that haven't ended."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = self.bytes = 0
        self._max_bytes, self._clock = max_bytes, clock
        self._owners: dict[bytes, _Owner] = {}
        self._expired_at = clock()

    @property
    def max_size(self) -> int:
        """Most bytes of one owner, and so of one response."""
        return self._max_bytes // 4

    def add(self, owner: bytes, stored: StoredResponse) -> bool:
        """Stores a response; False if it is too large."""
        self._expire()
        if stored.size > self.max_size:
            return False
        entry = self._owners.setdefault(owner, _Owner())
        entry.responses[stored.id] = stored, self._clock()
        entry.bytes += stored.size
        self.count += 1
        self.bytes += stored.size
        while entry.bytes > self.max_size or len(entry.responses) > MAX_RESPONSES:
            self._drop_oldest(owner)
        while self.bytes > self._max_bytes:
            self._drop_oldest(max(self._owners, key=lambda name: self._owners[name].bytes))
        return True

    def complete(self, owner: bytes, id: str, response: bytes) -> bool:
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
            if not entry.responses:
                self._owners.pop(owner, None)

    def _drop_oldest(self, owner: bytes) -> None:
        self._remove(owner, next(iter(self._owners[owner].responses)))

    def _remove(self, owner: bytes, id: str) -> None:
        self.count -= 1
        self.bytes -= self._owners[owner].remove(id)
