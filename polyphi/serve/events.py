"""Answers to clients that may hang up: server-sent events, and work that ends with its client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class Gone(Exception):
    """The client has hung up."""


async def gone(receive: Receive) -> None:
    """Returns when the client has hung up; the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; raises Gone, and cancels it, if the client hangs up before."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        left.cancel()


class Events(Response):
    """Server-sent events as they come. `close` is called when all were sent, the client has hung up (also before the
    first event), or something failed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        left = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({sending, left}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            left.cancel()
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
