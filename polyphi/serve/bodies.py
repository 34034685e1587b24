"""All bodies in memory: their limits in bytes and time, and the turns in which large ones are parsed.

>>> body = await bodies.read(declared_length, receive)
"""

import asyncio
from collections import deque

from starlette.types import Receive

from polyphi.serve.errors import ApiError
from polyphi.serve.settings import Settings

LARGE = 16 << 10
"""Bytes above which a body counts as large and waits for its turn."""
PAUSE_FACTOR = 3
"""After a large body was parsed, the pause until the next one, as a multiple of the time it took."""


class Bodies:
    """All bodies in memory, from their first byte until their response starts (the app has then read and checked them).

    Above `max_bodies_bytes` in total, the largest body that is still being received is dropped.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bytes = 0
        self.receiving: set[Body] = set()
        self._turn = asyncio.Lock()
        self._free = 0.0  # when the next large body may be read

    async def read(self, declared: int | None, receive: Receive) -> "Body | None":
        """The body, or None if the client disconnected first. Raises ApiError if it is too large, too slow or not as
        long as declared, or if the memory for bodies is full."""
        cap, body = self.settings.max_body_bytes, Body(self)
        if declared is not None and declared > cap:
            raise ApiError(413, f"expected a body of at most {cap} bytes, found {declared}")
        self.receiving.add(body)
        try:
            async with asyncio.timeout(self.settings.body_seconds) as body.clock:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        body.free()
                        return None
                    if body.evicted:
                        raise over_capacity()
                    body.add(message.get("body", b""))
                    more = message.get("more_body", False)
                    if body.bytes > cap:
                        raise ApiError(413, f"expected a body of at most {cap} bytes, found more")
                    if declared is not None and (body.bytes > declared or not more):
                        _check_length(declared, body.bytes)
                    if self.bytes > self.settings.max_bodies_bytes:
                        self._evict_largest(body)
        except BaseException as error:
            body.free()
            if not isinstance(error, TimeoutError):
                raise
            if body.evicted:
                raise over_capacity() from None
            seconds = self.settings.body_seconds
            raise ApiError(
                408,
                f"expected the whole body within {seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        finally:
            self.receiving.discard(body)
        return body

    async def turn(self) -> None:
        """Returns when a large body may be parsed; the caller must then do so at once. The app parses and checks it
        without a pause, in the thread of the event loop. That thread spends at most 1 / (1 + PAUSE_FACTOR) of its time
        on large bodies."""
        loop = asyncio.get_running_loop()
        await self._turn.acquire()
        try:
            await asyncio.sleep(self._free - loop.time())
        except BaseException:
            self._turn.release()
            raise
        loop.call_soon(self._finish_turn, loop.time())  # runs after the body was parsed

    def _finish_turn(self, started_at: float) -> None:
        now = asyncio.get_running_loop().time()
        self._free = now + PAUSE_FACTOR * (now - started_at)
        self._turn.release()

    def _evict_largest(self, newest: "Body") -> None:
        while self.bytes > self.settings.max_bodies_bytes:
            largest = max(self.receiving, key=lambda body: body.bytes)
            if largest is newest:
                raise over_capacity()
            assert largest.clock is not None
            largest.evicted = True
            largest.free()
            largest.clock.reschedule(asyncio.get_running_loop().time())


class Body:
    """The received bytes of one request's body."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.bytes = 0
        self.pieces: deque[bytes] = deque()
        self.clock: asyncio.Timeout | None = None
        self.evicted = False

    def add(self, piece: bytes) -> None:
        if piece or not self.pieces:  # the app receives an empty body too
            self.pieces.append(piece)
        self.bytes += len(piece)
        self._bodies.bytes += len(piece)

    def free(self) -> None:
        """Releases the memory; pieces that the app hasn't read are dropped."""
        self._bodies.bytes -= self.bytes
        self.bytes = 0
        self.pieces.clear()


def over_capacity() -> ApiError:
    return ApiError(
        503,
        "the server's capacity for connections or bodies is used up; try again later",
        headers={"Retry-After": "1"},
    )


def _check_length(declared: int, received: int) -> None:
    if received != declared:
        raise ApiError(
            400,
            f"expected a body of {declared} bytes (Content-Length), found {received}",
            headers={"Connection": "close"},
        )
