"""`polyphi serve`: uvicorn around the application, from a socket that responds before the model is loaded (loading.py)
to a graceful stop.

On SIGTERM or Ctrl-C the server accepts no more requests, finishes running ones for up to `Settings.drain_seconds`, and
ends. `FORCE_SECONDS` later it ends by force, whatever its threads do. On a second signal, or during the load, it ends
at once.
"""

import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import psutil
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from polyphi.runtime.heap import keep_large_blocks_apart
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.addresses import is_loopback
from polyphi.serve.http.connection import KEEP_ALIVE, Connections, WebSocketConnection
from polyphi.serve.page.loading import Loading, Progress

SWITCH_INTERVAL = 0.0005
"""Python's thread switch interval in seconds. A step releases and acquires Python's global lock hundreds of times; with
the default of 5 ms, a thread that encodes a large response would delay it by as much each time."""

FORCE_SECONDS = 3.0
"""Time after `drain_seconds` in which the server closes what is left; then the process ends by force."""
KILLS = 3
"""Number of rounds in which the child processes are killed."""
log = logging.getLogger("polyphi.serve")


def bind(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises ValueError if the port is in use or the address isn't this machine's."""
    try:
        family, socket_type, protocol_number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol number, asyncio disables Nagle's algorithm (delays of 40 ms).
        listener = socket.socket(family, socket_type, protocol_number)
    except OSError:
        raise ValueError(f"--host {settings.host}: expected an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {settings.port} of {settings.host} is in use, maybe by another polyphi serve; stop that one, "
                "or choose another port with --port"
            ) from None
        reason = error.strerror or "it can't be bound"
        raise ValueError(f"{settings.host}:{settings.port}: {reason}") from None
    return listener


def check_exposed(settings: Settings, insecure: bool) -> None:
    """Raises ValueError if other machines could reach a server that requires no API key."""
    if settings.keys or insecure or is_loopback(settings.host):
        return
    raise ValueError(
        f"--host {settings.host} can be reached from other machines, but no API key is set; set one with --api-key or "
        "POLYPHI_API_KEY, or use --insecure"
    )


class Watchdog:
    """Ends the process with status 0 at a time after a stop signal, whatever its threads do, and the processes that it
    has started."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._now = threading.Event()
        self._thread: threading.Thread | None = None

    def signal(self) -> None:
        """Starts the time until the process ends; at the second signal, ends the process at once."""
        if self._thread is not None:
            self._now.set()
            return
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if not self._now.wait(self.seconds):
            names = sorted({thread.name for thread in threading.enumerate()} - {"watchdog"})
            log.warning("ending by force after %g s; threads: %s", self.seconds, ", ".join(names))
        # Threads still run and could start another process in place of one that was killed.
        for _ in range(KILLS):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        end_process()


def end_process() -> None:
    """Ends the process with status 0, without the end of its threads."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


class DrainingServer(uvicorn.Server):
    """uvicorn's server; on a stop signal it also marks the application as draining and starts a watchdog, and it stops
    when the load fails."""

    def __init__(self, loading: Loading, settings: Settings) -> None:
        super().__init__(uvicorn_config(loading, settings))
        self._loading = loading
        self._watchdog = Watchdog(settings.drain_seconds + FORCE_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._watchdog.signal()
        if self._loading.app is not None:
            self._loading.app.state.server.draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._loading.app is not None:  # requests of new connections don't pass `Loading`
            self.config.loaded_app = self._loading.app
        return await super().on_tick(counter) or self._loading.error is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shuts down; before the model is loaded no request is running, so connections are closed at once."""
        if self._loading.app is None:
            for server in self.servers:
                server.close()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        # A traceback for each request that is cancelled.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """The configuration of uvicorn: with the limits of connection.py, and without uvicorn's own log and headers."""
    return uvicorn.Config(
        app,
        http=Connections(settings).protocol,
        ws=WebSocketConnection,
        ws_max_size=settings.max_live_event_bytes,
        ws_per_message_deflate=False,  # a small message could expand to a large one
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.drain_seconds),
        timeout_keep_alive=KEEP_ALIVE,
    )


def serve(
    load: Callable[[Progress], FastAPI],
    settings: Settings,
    listening: socket.socket,
    ready: Callable[[], None],
) -> None:
    """Load the application and serve until a stop signal. `load` runs in a thread; `ready` is called after it. Raises
    the exception of the load. On a stop signal during the load, the process ends here with status 0."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    keep_large_blocks_apart()
    loading = Loading(load, settings, ready)
    server = DrainingServer(loading, settings)
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again at the end
        signal.signal(signal_number, server.handle_exit)
    server.run(sockets=[listening])
    if loading.error is not None:
        raise loading.error
    if loading.app is None:
        # Python's normal exit would free objects that the loading thread is still using.
        end_process()


def address(settings: Settings) -> str:
    """The URL of the server for a browser on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
