"""`polyphi serve`: uvicorn around the application, from a socket that answers before the model is loaded (loading.py)
to a stop that loses nothing.

Asked to stop (SIGTERM, Ctrl-C), the server takes no more requests, finishes those under way for up to
`Settings.drain_seconds`, and ends; asked again, at once. Asked during the load, it ends at once.
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
from polyphi.serve.connection import protocol
from polyphi.serve.loading import Loading, Progress
from polyphi.serve.settings import Settings

SWITCH = 0.0005
"""Seconds after which a thread that runs Python gives way. A step gives Python's global lock up and takes it again
hundreds of times; with Python's own 5 ms, a thread that writes a large answer would delay each of them by as much."""


def bind(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises ValueError if another program has it, or the address isn't this machine's."""
    try:
        family, kind, protocol_number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol's number, by which asyncio knows that it may turn Nagle's delays (40 ms) off.
        found = socket.socket(family, kind, protocol_number)
    except OSError:
        raise ValueError(f"--host {settings.host}: no address of this machine") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {settings.port} of {settings.host} is taken, maybe by another polyphi serve; stop that one, "
                "or choose another with --port"
            ) from None
        reason = error.strerror or "it can't be bound"
        raise ValueError(f"{settings.host}:{settings.port}: {reason}") from None
    return found


def check_open(settings: Settings, insecure: bool) -> None:
    """Raises ValueError if strangers could reach a server that asks for no key."""
    if settings.keys or insecure or _is_loopback(settings.host):
        return
    raise ValueError(
        f"--host {settings.host} can be reached by others, but no key is asked for; give one with --api-key or "
        "POLYPHI_API_KEY, or say --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Drain(uvicorn.Server):
    """uvicorn's server, which informs the application when it is asked to stop, and stops when the load fails."""

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
        """Before the model is loaded no request is under way: what is still being received is not waited for."""
        if self._loading.app is None:
            for server in self.servers:
                server.close()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)


def configured(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn as it is run here: with bounds of its own (guard.py), and silent about itself."""
    return uvicorn.Config(
        app,
        http=protocol(settings),
        ws="none",
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
    """Load the application and answer until the server is asked to stop. `load` runs in a thread, `ready` is called
    when it is done. Raises what the load raises. Stopped during the load, the process ends here with status 0."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH)
    keep_large_blocks_apart()
    loading = Loading(load, settings, ready)
    server = Drain(configured(loading, settings), loading)
    for sign in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when all is done
        signal.signal(sign, server.handle_exit)
    server.run(sockets=[listening])
    if loading.error is not None:
        raise loading.error
    if loading.app is None:
        # Python's own end would free what the thread that loads is still using.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def address(settings: Settings) -> str:
    """Where a browser on this machine finds it."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
