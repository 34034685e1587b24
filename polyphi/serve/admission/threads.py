"""Threads that clients use in turn.

>>> threads = Threads(LARGE_THREADS, "prepare large")
>>> ids = await threads.run(b"client", tokenizer.encode, text)
>>> row = await threads.run_steps(b"client", engine.rows.row_steps(messages))    # a turn for each image
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from polyphi.runtime.steps import Steps, stopped_by
from polyphi.serve.admission.quotas import FairSlots

T = TypeVar("T")
TURN_SECONDS = 0.05
"""Time of a turn of work in steps, beside its last step: one step may be shorter than a thread switch."""


@dataclass(frozen=True)
class StepsResult(Generic[T]):
    """The result of all steps."""

    value: T


class Threads:
    """A pool of `total` threads, each with a slot. A slot is free again when its thread is, which may be later than
    the end of the request whose work the thread does."""

    def __init__(self, total: int, name: str) -> None:
        self.slots = FairSlots(total)
        self.pool = ThreadPoolExecutor(total, name)
        self._closed = threading.Event()

    async def run(self, client: bytes, work: Callable[..., T], *args: Any) -> T:
        """The result of `work`, run in a thread when it is the client's turn. When cancelled, work that waits for a
        process ends (`is_stopped`)."""
        await self.slots.take(client)
        stop = threading.Event()

        def stoppable() -> T:
            with stopped_by(lambda: stop.is_set() or self._closed.is_set()):
                return work(*args)

        def ended(future: asyncio.Future[T]) -> None:
            self.slots.release(client)
            if not future.cancelled():
                future.exception()  # retrieved, so that asyncio doesn't log it

        try:
            future = asyncio.wrap_future(self.pool.submit(stoppable))
        except BaseException:  # the server has stopped
            self.slots.release(client)
            raise
        future.add_done_callback(ended)
        try:
            return await asyncio.shield(future)
        finally:
            stop.set()

    async def run_steps(self, client: bytes, steps: Steps[T]) -> T:
        """The result of work in steps, each in the client's turn. When cancelled, the work stops after its step."""
        stop = threading.Event()

        def take_steps() -> StepsResult[T] | None:
            end = time.monotonic() + TURN_SECONDS
            while not (stop.is_set() or self._closed.is_set()):
                try:
                    next(steps)
                except StopIteration as last:
                    return StepsResult(last.value)
                if time.monotonic() >= end:
                    return None
            steps.close()
            return None

        try:
            while (result := await self.run(client, take_steps)) is None:
                pass
            return result.value
        finally:
            stop.set()

    def close(self, *, wait: bool = True) -> None:
        """Ends the threads after their present work or step."""
        self._closed.set()
        self.pool.shutdown(wait=wait, cancel_futures=True)
