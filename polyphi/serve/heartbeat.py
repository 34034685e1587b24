"""Whether the parts of the server that every request needs still respond, for `/health`.

>>> pulse = Heartbeats(Heartbeat(pool.submit, lambda: None, SMALL_POOL_SECONDS), ...)
>>> asyncio.create_task(pulse.run())                # until it is cancelled
>>> pulse.alive
True
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

INTERVAL = 1.0
"""Seconds between two calls."""
SMALL_POOL_SECONDS = 10.0
"""Time for a trivial call in the threads for short work. When all of them are busy for longer, every request waits."""
ENGINE_SECONDS = 300.0
"""Time for a call that waits for the engine's lock. It is held for one step, which may take minutes: a large model on a
slow CPU."""


class Heartbeat:
    """A trivial call that is submitted to threads every second, as long as the last one has returned."""

    def __init__(
        self,
        submit: Callable[[Callable[[], None]], object],
        call: Callable[[], object],
        limit: float,
    ) -> None:
        self.limit = limit
        self._submit, self._call = submit, call
        self._sent_at: float | None = None  # of the call that has not returned

    def send(self) -> None:
        if self._sent_at is None:
            self._sent_at = time.monotonic()
            with suppress(RuntimeError):  # no thread can be started: the call never returns
                self._submit(self._run)

    def _run(self) -> None:
        self._call()
        self._sent_at = None

    @property
    def alive(self) -> bool:
        """Whether the last call has returned, or has had less than `limit` seconds."""
        sent_at = self._sent_at
        return sent_at is None or time.monotonic() - sent_at < self.limit


class Heartbeats:
    """The heartbeats of a server."""

    def __init__(self, *heartbeats: Heartbeat) -> None:
        self.heartbeats = heartbeats

    async def run(self) -> None:
        """Sends them until it is cancelled. Their threads note the returns: no busy event loop makes them late."""
        while True:
            for heartbeat in self.heartbeats:
                heartbeat.send()
            await asyncio.sleep(INTERVAL)

    @property
    def alive(self) -> bool:
        return all(heartbeat.alive for heartbeat in self.heartbeats)
