"""`polyphi serve`: uvicorn around the application, from a socket that responds before the model is loaded (loading.py)
to a graceful stop.

On SIGTERM or Ctrl-C the server accepts no more requests, finishes running ones for up to `Settings.drain_seconds`, and
ends. On a second signal, or during the load, it ends at once.
"""

import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from polyphi.runtime.heap import keep_large_blocks_apart
from polyphi.serve.connection import protocol, socket_protocol
from polyphi.serve.loading import Loading, Progress
from polyphi.serve.settings import Settings

SWITCH_INTERVAL = 0.0005
"""Python's thread switch interval in seconds. A step releases and acquires Python's global lock hundreds of times; with
the default of 5 ms, a thread that encodes a large response would delay it by as much each time."""


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
    if settings.keys or insecure or _is_loopback(settings.host):
        return
    raise ValueError(
        f"--host {settings.host} can be reached from other machines, but no API key is set; set one with --api-key or "
        "POLYPHI_API_KEY, or use --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Drain(uvicorn.Server):
    """uvicorn's server; it also marks the application as draining on a stop signal, and stops when the load fails."""

    def __init__(self, config: uvicorn.Config, loading: Loading) -> None:
        super().__init__(config)
        self._loading = loading

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loading.app is not None:
            self._loading.app.state.server.draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._loading.error is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shuts down; before the model is loaded no request is running, so connections are closed at once."""
        if self._loading.app is None:
            for server in self.servers:
                server.close()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """The configuration of uvicorn: with the limits of connection.py, and without uvicorn's own log and headers."""
    return uvicorn.Config(
        app,
        http=protocol(settings),
        ws=socket_protocol(settings),
        ws_max_size=settings.max_live_event_bytes,
        ws_per_message_deflate=False,  # a small message could expand to a large one
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.drain_seconds),
        timeout_keep_alive=15,
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
    server = Drain(uvicorn_config(loading, settings), loading)
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again at the end
        signal.signal(signal_number, server.handle_exit)
    server.run(sockets=[listening])
    if loading.error is not None:
        raise loading.error
    if loading.app is None:
        # Python's normal exit would free objects that the loading thread is still using.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def address(settings: Settings) -> str:
    """The URL of the server for a browser on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
