"""Whether the threads that every request needs still respond, for `/health`.

>>> heartbeats = Heartbeats(pool.submit, drops.submit, engine.counters)
>>> asyncio.create_task(heartbeats.run())                # until it is cancelled
>>> heartbeats.alive
True
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

INTERVAL = 1.0
"""Seconds between two heartbeats."""
SMALL_POOL_SECONDS = 10.0
"""Time for a trivial call in the threads for short work. When all of them are busy for longer, every request waits."""
ENGINE_SECONDS = 300.0
"""Time for a call that waits for the engine's lock. It is held for one step, which may take minutes: a large model on a
slow CPU."""

Submit = Callable[[Callable[[], None]], object]
"""`submit` of an executor."""


class Heartbeat:
    """A trivial call in a thread, repeated when it has returned. `seconds`: the time that it has not returned for."""

    def __init__(self, submit: Submit, call: Callable[[], object], limit: float) -> None:
        self.limit, self.seconds = limit, 0.0
        self.pending = False
        self._submit, self._call = submit, call

    def send(self) -> None:
        if not self.pending:
            self.pending, self.seconds = True, 0.0
            with suppress(RuntimeError):  # no thread can be started: the call never returns
                self._submit(self._run)

    def _run(self) -> None:
        self._call()
        self.pending = False

    @property
    def alive(self) -> bool:
        return not self.pending or self.seconds < self.limit


class Heartbeats:
    """The heartbeats of the threads for short work (`submit_small`) and of the engine, whose `counters` wait for its
    lock in another thread (`submit`).

    Short work waits for the lock too. So the time in which the engine has not returned a call counts for it alone.
    """

    def __init__(
        self, submit_small: Submit, submit: Submit, counters: Callable[[], object]
    ) -> None:
        self.small = Heartbeat(submit_small, lambda: None, SMALL_POOL_SECONDS)
        self.engine = Heartbeat(submit, counters, ENGINE_SECONDS)

    async def run(self) -> None:
        """Sends heartbeats and counts their seconds until the task is cancelled. The time in which the event loop is
        blocked doesn't count."""
        while True:
            self.small.send()
            self.engine.send()
            await asyncio.sleep(INTERVAL)
            waiting = self.engine if self.engine.pending else self.small
            waiting.seconds += INTERVAL

    @property
    def alive(self) -> bool:
        return self.small.alive and self.engine.alive
