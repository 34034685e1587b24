"""The application that serves while the model loads, and then passes requests to the loaded one.

>>> loading = Loading(load, settings)            # load(progress) returns the application, in another thread
>>> uvicorn.Server(configured(loading, settings)).run(sockets=[listening])      # run.py

Until then `/live` returns 200, `/` a page that shows the progress, `/health` and `/ready` return 503 with it, and every
other request gets 503 with `Retry-After`. Host, Origin, keys and sizes are checked as afterwards: `AccessGuard` stands
in front.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.guard import AccessGuard
from polyphi.serve.page import page

RETRY_AFTER = {"Retry-After": "5"}
"""Seconds after which a client should retry."""


class Progress:
    """The progress of a load. The loading thread updates it, the server's thread reads it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._state: tuple[str, float | None] = "starting", None

    def update(self, stage: str, share: float | None = None) -> None:
        """Set the stage, and the share of it that is done: 0 to 1, or None where it is unknown."""
        self._state = stage, share  # one assignment, so that readers never see a partial update

    @property
    def body(self) -> dict[str, Any]:
        """The progress as `/health` and `/ready` return it."""
        stage, share = self._state
        return {
            "status": "loading",
            "stage": stage,
            "share": None if share is None else round(share, 3),
            "seconds": round(time.monotonic() - self._began, 1),
        }


class Loading:
    """An ASGI application that loads another one when it starts, and passes requests on as soon as that has started.

    `load` runs in a thread. `ready` is called when requests are passed on. Where the load or the start of the
    application fails, `error` holds the exception, and the server is to be stopped.
    """

    def __init__(
        self,
        load: Callable[[Progress], FastAPI],
        settings: Settings,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.app: FastAPI | None = None
        """The loaded application, once it has started."""
        self.error: BaseException | None = None
        self._load, self._ready = load, ready
        self._loaded: FastAPI | None = None
        self._progress = Progress()
        self._guard = AccessGuard(self._answer, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await (self.app or self._guard)(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        stop = asyncio.ensure_future(receive())
        loaded = asyncio.Event()
        # No thread of an executor: asyncio would wait for it when the server is stopped during the load.
        thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(), loaded), name="load", daemon=True
        )
        thread.start()
        waiting = asyncio.ensure_future(loaded.wait())
        await asyncio.wait({stop, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._loaded is not None and not stop.done():
            await self._serve(self._loaded, stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, app: FastAPI, stop: "asyncio.Future[Any]") -> None:
        """Run the lifespan of the loaded application until the server stops."""
        try:
            async with app.router.lifespan_context(app):
                self.app = app
                self._ready()
                await stop
        except Exception as error:
            self.error = error

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Event) -> None:
        try:
            self._loaded = self._load(self._progress)
            # Loaded objects stay alive: without them, garbage collections, which stop all threads, are shorter.
            gc.collect()
            gc.freeze()
        except BaseException as error:  # a panic of a Rust library is no Exception
            self.error = error
        with suppress(RuntimeError):  # the loop is closed: the server was stopped during the load
            loop.call_soon_threadsafe(loaded.set)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope.get("method") == "GET" else ""
        if path == "/live":
            response: Response = JSONResponse({"status": "ok"})
        elif path == "/":
            response = Response(page.LOADING, 503, {**page.LOADING_HEADERS, **RETRY_AFTER})
        elif path in ("/health", "/ready"):
            response = JSONResponse(self._progress.body, 503, RETRY_AFTER)
        else:
            raise ApiError(
                503,
                "the model is loading; GET /ready returns the progress, and status 200 when the server is ready",
                code="loading",
                headers=RETRY_AFTER,
            )
        await response(scope, receive, send)
