"""Limits that uvicorn's protocols lack: for slow or endless headers, endless framing, unread responses, and the number
of connections.

>>> uvicorn.Config(app, http=protocol(settings), ws=socket_protocol(settings), access_log=False, server_header=False)

At the limit of connections, the one that has been open longest without a complete request is closed: so a hostile peer
loses its own connection and not those of others. guard.py checks complete headers.
"""

import asyncio
import re
from asyncio import TimerHandle
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from polyphi.serve.bodies import over_capacity
from polyphi.serve.errors import ApiError
from polyphi.serve.guard import (
    SECURITY_HEADERS,
    access,
    envelope,
    headers_too_long,
    new_id,
)
from polyphi.serve.settings import Settings

ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
"""A request target in absolute form, as sent to proxies: `http://name:port` and the path. guard.py checks the name."""
REALTIME = b"/v1/realtime"
"""The path that can be upgraded to a WebSocket."""
MAX_FRAGMENTS = 1024
"""Frames of one message; they may be empty, so a limit on bytes is none on their number."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits; uvicorn has none before a request's headers are complete.

    It uses the parser on llhttp, because hostile framing is cheap for it: a piece of 256 KiB made of one-byte chunks
    blocks the event loop, and so all clients, for 3 ms, where h11 takes 240 ms (measured on one core).

    Headers must arrive within `header_seconds` of the connection (of their first byte on a reused connection) and take
    at most `max_header_bytes`; the same limits apply to the framing between two parts of a body, trailers included. The
    rest of a body whose request is already answered is discarded for the same time. A client must read each bufferful
    of a response within `body_seconds`. Requests are answered one at a time: one that arrives before the last is
    answered is not read.
    """

    settings: Settings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._read_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._discarding = False
        """Whether received bytes are discarded, because the last request of this connection was received."""
        self._in_headers = False
        self._framing_bytes = 0
        """Bytes of incomplete headers, or of framing since a piece was at least half body."""
        self._body_bytes = 0
        """Bytes of body in the piece that is being parsed."""
        self._idle_since = self.loop.time()
        self._start_read_timer()
        if len(self.connections) > self.settings.max_connections:
            self._evict_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._discarding = True
        self._stop_read_timer()
        if self._write_timer:
            self._write_timer.cancel()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        """Whether a complete request is being answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _evict_idle(self) -> None:
        """Closes the connection that has been open longest without a complete request, or this one if all are busy."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        idle = [connection for connection in others if not connection._busy]
        if not idle:
            self._refuse(over_capacity())
            return
        longest = min(idle, key=lambda connection: connection._idle_since)
        self.connections.discard(longest)
        longest.transport.abort()

    def _start_read_timer(self, seconds: float | None = None) -> None:
        """Starts the timer that closes the connection unless the awaited data arrives in time."""
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(
            seconds or self.settings.header_seconds, self.transport.abort
        )

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
        self._read_timer = None

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unset_keepalive_if_required()
        if self._read_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start_read_timer()
        self._body_bytes = 0
        cycle = self.cycle
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(ApiError(400, "expected an HTTP/1.1 request"))
            return
        if self.cycle is not cycle or self._body_bytes * 2 >= len(data):
            self._framing_bytes = 0
            return
        self._framing_bytes += len(data) - self._body_bytes
        if not self._busy and self._framing_bytes > (cap := self.settings.max_header_bytes):
            self._refuse(headers_too_long(cap))

    def _upgrade(self, rest: bytes) -> None:
        """Handles a request with an Upgrade header. Only the route for live audio is a WebSocket: others are parsed
        again without that header. (Java's client offers HTTP/2 this way with every request, and llhttp would treat the
        body as the other protocol's.)"""
        method = self.parser.get_method()
        path = self.url.partition(b"?")[0]
        if method == b"GET" and path == REALTIME and self._should_upgrade():
            self._open_socket(rest)
            return
        if method == b"CONNECT":
            self._refuse(ApiError(400, "CONNECT isn't supported: this server is not a proxy"))
            return
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        lines += [n + b": " + v for n, v in self.headers if n not in (b"upgrade", b"connection")]
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _open_socket(self, rest: bytes) -> None:
        """Passes the connection to a `Socket`."""
        if rest:
            self._refuse(ApiError(400, "expected nothing after the headers of a WebSocket request"))
            return
        self._stop_read_timer()
        if self._write_timer:
            self._write_timer.cancel()
        self.scope["method"] = "GET"  # `on_headers_complete` ignores upgrades
        self.handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, Socket) and not socket.handshake_initiated:
            # uvicorn ignores headers that the library can't read, and waits for others.
            self._refuse(ApiError(400, "the headers of the WebSocket request can't be read"))

    def _close_after_response(self) -> None:
        """Discards further input, and closes the connection after the current response."""
        self._discarding = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _refuse(self, error: ApiError) -> None:
        """Sends an error for an incomplete or invalid request, and closes the connection."""
        cycle = self.cycle
        if self._busy:  # it came after a complete request
            self._close_after_response()
            return
        self._discarding = True
        if cycle is None or not (cycle.more_body and cycle.response_started):
            status, headers, body = envelope(error, new_id())
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            lines += [
                name + b": " + value
                for name, value in [*headers, *SECURITY_HEADERS, (b"connection", b"close")]
            ]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
            access.info("a connection was refused with %d", status)
        self.transport.close()
        self._start_read_timer()  # until the peer has read the error

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request came before the last one was answered")
        super().on_message_begin()
        self._in_headers = True
        self._framing_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # later ones are trailers, which are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_headers = False
        self._stop_read_timer()
        self._idle_since = self.loop.time()
        if absolute := ABSOLUTE.fullmatch(self.url):
            # uvicorn would drop the name, and fail where no path follows it.
            self.scope["extensions"] = {"target": {"origin": absolute[1]}}
            self.url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if (
            self.cycle.more_body
        ):  # uvicorn ignores the end of a body whose request is already answered
            self.cycle.more_body = False
            self._stop_read_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self.transport.is_closing():
            self._start_read_timer(self.settings.body_seconds)  # until the peer has read the rest

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_read_timer(self.settings.body_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
        self._write_timer = None


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets with limits: on frames of one message, on the time for a client to read a
    bufferful of events, and on the bytes (such as replies to pings) that a client doesn't read while it sends."""

    settings: Settings

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._write_timer: TimerHandle | None = None
        self._close_timer: TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._write_timer, self._close_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.disconnected:  # until the peer has read the rest
            self._close_timer = self._abort_later()

    def _abort_later(self) -> TimerHandle:
        return self.loop.call_later(self.settings.body_seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.transport.get_write_buffer_size() > self.settings.max_live_event_bytes:
            self.transport.abort()
            return
        super().data_received(data)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many frames")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
        self._write_timer = None


def socket_protocol(settings: Settings) -> type[Socket]:
    """The protocol class for the `ws` argument of a `uvicorn.Config`."""
    return type("Socket", (Socket,), {"settings": settings})


def protocol(settings: Settings) -> type[Connection]:
    """The protocol class for the `http` argument of a `uvicorn.Config`."""
    return type("Connection", (Connection,), {"settings": settings})
