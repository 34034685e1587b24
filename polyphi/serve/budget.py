"""The memory budget for the prompts of all requests: their images and audio are large.

>>> budget = Budget(1 << 30)
>>> share = budget.reserve(50_000_000)              # None where too little is left
>>> share.resize(48_123_456)                        # the actual size
>>> share.release()
"""

import threading


class Share:
    """The bytes reserved for one request, until release or the end of the answers to all its `rows`. Thread-safe."""

    def __init__(self, budget: "Budget", count: int, rows: int) -> None:
        self._budget = budget
        self._count = count
        self._rows = rows
        self._released = False

    def resize(self, count: int) -> None:
        """Sets the bytes reserved for the request; does nothing after the release."""
        with self._budget.lock:
            self._resize(count)

    def row_ended(self) -> None:
        """Records the end of the answers to one row; the last row releases the share."""
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
    """At most `limit` bytes in total for all requests; a single request may take more. `bytes`: reserved now."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.lock = threading.Lock()

    def reserve(self, count: int, rows: int = 1) -> Share | None:
        """A share of `count` bytes, or None where other requests leave too few. `count` = 0 always succeeds."""
        with self.lock:
            if count and self.bytes and self.bytes + count > self.limit:
                return None
            self.bytes += count
            return Share(self, count, rows)
