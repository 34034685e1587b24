"""All bodies in memory: their limits in bytes and time, and each client's share of the memory.

>>> body = await bodies.read(client, declared_length, receive, json=True)
"""

import asyncio
from collections import deque

from starlette.types import Receive

from polyphi.serve.admission.quotas import Pool, QuotaExceeded, Reservation
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.json_scanner import BodyPiece, Scanner

BLOCK = 64 << 10
"""Bytes that are scanned at once: slow networks deliver a body in tiny pieces."""


class Body:
    """The received bytes of one request's body, and the memory that counts for them and for what was parsed from them,
    until `release`."""

    def __init__(self, client: bytes, reservation: Reservation, *, json: bool) -> None:
        self.client, self.json = client, json
        self.bytes = 0
        self.pieces: deque[BodyPiece] = deque()
        self.clock: asyncio.Timeout | None = None
        self.refusal: ApiError | None = None
        """Why the body is no longer received."""
        self._reservation = reservation
        self._scanner = Scanner()
        self._block: list[bytes] = []
        self._block_bytes = 0

    def add(self, received: bytes) -> None:
        """Raises ApiError 413 above a limit of JSON, and QuotaExceeded where there is no memory for the bytes."""
        self._reservation.grow(len(received))
        self.bytes += len(received)
        self._block.append(received)
        self._block_bytes += len(received)
        if self._block_bytes >= BLOCK:
            self.end_block()

    def end_block(self, *, last: bool = False) -> None:
        block = b"".join(self._block)
        self._block, self._block_bytes = [], 0
        if self.json:
            self.pieces += self._scanner.scan(block, last=last)
        elif block:
            self.pieces.append(BodyPiece(block))

    def take(self) -> bytes:
        """The next piece, which no longer counts."""
        data = self.pieces.popleft().data
        self._reservation.resize(self._reservation.amount - len(data))
        return data

    def resize(self, size: int) -> None:
        """Sets the memory that counts to that of the parsed values."""
        self._reservation.resize(size)

    def release(self) -> None:
        """Drops the pieces; nothing counts any longer."""
        self._reservation.release()
        self.pieces.clear()
        self._block = []


class Bodies:
    """The bodies that are being received. Where a client's share or the memory of all is used up, the largest of them
    is refused."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self.settings, self.pool = settings, pool
        self.receiving: set[Body] = set()

    async def read(
        self, client: bytes, declared: int | None, receive: Receive, *, json: bool
    ) -> Body | None:
        """The body, or None if the client disconnected first. Raises ApiError if it is too large, too slow or not as
        long as declared, or if there is no memory for it."""
        cap, body = self.settings.max_body_bytes, Body(client, self.pool.take(client, 0), json=json)
        if declared is not None and declared > cap:
            raise ApiError(413, f"expected a body of at most {cap} bytes, found {declared}")
        self.receiving.add(body)
        try:
            async with asyncio.timeout(self.settings.body_seconds) as body.clock:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        body.release()
                        return None
                    received = message.get("body", b"")
                    more = message.get("more_body", False)
                    if body.bytes + len(received) > cap:
                        raise ApiError(413, f"expected a body of at most {cap} bytes, found more")
                    self._add(body, received)
                    if declared is not None and (body.bytes > declared or not more):
                        _check_length(declared, body.bytes)
                body.end_block(last=True)
        except BaseException as error:
            body.release()
            if not isinstance(error, TimeoutError):
                raise
            if body.refusal:
                raise body.refusal from None
            seconds = self.settings.body_seconds
            raise ApiError(
                408,
                f"expected the whole body within {seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        finally:
            self.receiving.discard(body)
        return body

    def _add(self, body: Body, received: bytes) -> None:
        """Adds received bytes. Where there is no memory for them, refuses larger bodies until there is, or this one."""
        while not body.refusal:
            try:
                body.add(received)
                return
            except QuotaExceeded as full:
                refusal = over_share(full) if full.by_client else over_capacity()
                rivals = [
                    one
                    for one in self.receiving
                    if not one.refusal and (not full.by_client or one.client == body.client)
                ]
                more = {body: len(received)}
                largest = max(rivals, key=lambda one: one.bytes + more.get(one, 0))
                largest.refusal = refusal
                largest.release()
                if largest is not body and largest.clock is not None:
                    largest.clock.reschedule(asyncio.get_running_loop().time())
        raise body.refusal


def over_share(full: QuotaExceeded) -> ApiError:
    return ApiError(
        429,
        f"the bodies of your requests may have {full.limit:,} bytes together; wait for answers to some of them",
        code="too_many_bytes",
        headers={"Retry-After": "1"},
    )


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
