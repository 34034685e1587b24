"""How much memory the prompts of all requests may take: their images and audio are large.

>>> budget = Budget(1 << 30)
>>> share = budget.reserve(50_000_000)              # None where that is too much beside the others
>>> share.resize(48_123_456)                        # what it turned out to be
>>> share.release()
"""

import threading


class Share:
    """Bytes that one request holds, until it is released or the answers to all its `rows` have ended. May be used from
    any thread."""

    def __init__(self, budget: "Budget", count: int, rows: int) -> None:
        self._budget = budget
        self._count = count
        self._rows = rows
        self._released = False

    def resize(self, count: int) -> None:
        """The bytes that the request holds now; nothing after its release."""
        with self._budget.lock:
            self._resize(count)

    def row_ended(self) -> None:
        """The answers to one of its rows have ended."""
        with self._budget.lock:
            self._rows -= 1
            if not self._rows:
                self._release()

    def release(self) -> None:
        with self._budget.lock:
            self._release()

    def _resize(self, count: int) -> None:
        if not self._released:
            self._budget.bytes += count - self._count
            self._count = count

    def _release(self) -> None:
        self._resize(0)
        self._released = True


class Budget:
    """At most `limit` bytes for all requests together; one alone may have more. `bytes`: held now."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.lock = threading.Lock()

    def reserve(self, count: int, rows: int = 1) -> Share | None:
        """A share of so many bytes, or None where others leave too few. A share of none is always there."""
        with self.lock:
            if count and self.bytes and self.bytes + count > self.limit:
                return None
            self.bytes += count
            return Share(self, count, rows)
