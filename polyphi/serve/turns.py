"""Slots for large work, shared fairly between clients: sixty large requests of one client don't delay another's first.

>>> turns = Turns(1)
>>> async with turns.turn(b"client"): ...
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `slots` pieces of work at once. Waiting clients take turns (round robin), each client's work in order."""

    def __init__(self, slots: int) -> None:
        self._free_slots = slots
        # The next client is the first.
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, client: bytes) -> AsyncIterator[None]:
        """Waits for a slot, and occupies it inside the context."""
        if self._free_slots:
            self._free_slots -= 1
        else:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(slot)
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():  # cancelled just after it got its slot
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            client, queue = self._waiting.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not first.done():  # skip cancelled waiters
                first.set_result(None)
                return
        self._free_slots += 1
