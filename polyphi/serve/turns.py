"""Places for large work, which clients take by turns: sixty large requests of one don't delay another's first.

>>> turns = Turns(1)
>>> async with turns.turn(b"client"): ...
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `places` pieces of work at once; those that wait are let in client by client, of a client in order."""

    def __init__(self, places: int) -> None:
        self._free = places
        # The client whose turn comes next is the first.
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, client: bytes) -> AsyncIterator[None]:
        """Waits for a place, and holds it."""
        if self._free:
            self._free -= 1
        else:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # it had just got its place
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            client, queue = self._waiting.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if not first.done():  # who was cancelled waits no more
                first.set_result(None)
                return
        self._free += 1
