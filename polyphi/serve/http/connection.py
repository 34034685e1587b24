"""Limits of a connection that uvicorn lacks: for slow or endless headers, endless framing, unread responses, and the
number of connections.

>>> connections = Connections(settings)
>>> uvicorn.Config(app, http=connections.protocol, ws=WebSocketsSansIOProtocol, access_log=False, server_header=False)

A `Connection` stands between the transport and uvicorn's protocol, as a reverse proxy stands before a server. It parses
the requests, applies the limits, and passes each one on in one plain form: the headers when they are complete, then the
body as it arrives. uvicorn's protocol is used through the callbacks of `asyncio.Protocol` alone. The ASGI application
(guard.py) reports the start and the end of each response to the `Connection` that it finds in the scope's state.

guard.py checks complete headers.
"""

import asyncio
import re
from asyncio import TimerHandle
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from polyphi.serve.admission.quotas import QuotaExceeded, Quotas, Reservation, client_of
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.bodies import over_capacity
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.guard import SECURITY_HEADERS, access, envelope, headers_too_long, new_id
from polyphi.serve.http.websocket_frames import FrameCounter, close_frame

ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
"""A request target in absolute form, as sent to proxies: `http://name:port` and the path. guard.py checks the name."""
REALTIME = b"/v1/realtime"
"""The path that can be upgraded to a WebSocket."""
UPGRADE = frozenset({b"upgrade", b"connection"})
KEEP_ALIVE = 15.0
"""Seconds that a connection stays open between a response and the next request."""
MAX_FRAGMENTS = 1024
"""Frames of one message; they may be empty, so a limit on bytes is none on their number."""
MESSAGE_TOO_BIG = 1009
"""The code with which a WebSocket is closed for a message that is too big."""


class Connections:
    """The open connections of a server.

    At the limit of all, or of one address, the one that has been open longest without a complete request is closed: so
    a hostile peer loses its own connection and not those of others.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool = Quotas(settings).connections
        self._open: set[Connection] = set()

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """The protocol class for the `http` argument of a `uvicorn.Config`."""

        def create(
            config: uvicorn.Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> Connection:
            connection = Connection(self)
            state = {**app_state, "connection": connection}
            connection.inner = HttpToolsProtocol(config, server_state, state, _loop)
            return connection

        return cast(type[asyncio.Protocol], create)  # uvicorn calls it as it calls a class

    def admit(self, connection: "Connection") -> bool:
        """Adds a new connection, in place of another one where necessary. False if all are busy."""
        while True:
            try:
                connection.reservation = self._pool.take(connection.client, 1)
            except QuotaExceeded as full:
                idle = [
                    other
                    for other in self._open
                    if not other.busy and (other.client == connection.client or not full.by_client)
                ]
                if not idle:
                    return False
                longest = min(idle, key=lambda other: other.idle_since)
                self.remove(longest)
                longest.abort()
            else:
                self._open.add(connection)
                return True

    def remove(self, connection: "Connection") -> None:
        self._open.discard(connection)
        if connection.reservation:
            connection.reservation.release()

    def abort(self) -> None:
        """Closes all connections at once."""
        for connection in list(self._open):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection. `inner` is uvicorn's protocol of HTTP or, after an upgrade, of WebSockets.

    Headers must arrive within `header_seconds` of the connection (of their first byte on a reused connection) and take
    at most `max_header_bytes`; the same limits apply to the framing between two parts of a body, trailers included. The
    rest of a body whose request is already answered is discarded for the same time. A client must read each bufferful
    of a response within `body_seconds`. Requests are answered one at a time: one that arrives before the last is
    answered is not read. A client of a WebSocket must also read replies to pings before it sends more.

    The parser is llhttp, because hostile framing is cheap for it: a piece of 256 KiB made of one-byte chunks takes
    h11 240 ms (measured on one core).
    """

    inner: asyncio.Protocol
    transport: asyncio.Transport
    client: bytes

    def __init__(self, connections: Connections) -> None:
        self.reservation: Reservation | None = None
        self._connections, self._settings = connections, connections.settings
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._read_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._idle = False
        """Whether the connection waits for another request."""
        self._discarding = False
        """Whether received bytes are discarded, because the last request of this connection was received."""
        self._frames: FrameCounter | None = None
        """The counter of the frames of each message; None unless the connection is a WebSocket."""
        # The request that is being received or answered:
        self._url = self._origin = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_headers = self._in_body = self._chunked = False
        self._called = False
        """Whether the application was called for the last request."""
        self._answering = self._response_started = False
        self.idle_since = self._loop.time()
        """Time when the connection was opened, or when the headers or the response of its last request were
        complete."""
        # The piece of data that is being parsed:
        self._parsed: list[bytes] = []
        """The parts of the parsed data that `inner` receives."""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._headers_ended = False
        self._framing_bytes = 0
        """Bytes of incomplete headers, or of framing since a piece was at least half body."""

    @property
    def busy(self) -> bool:
        """Whether a complete request is being answered, or the connection is a WebSocket."""
        return self._answering and not self._in_body

    def abort(self) -> None:
        self.transport.abort()

    # The transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.client = client_of(b"", peer[0] if isinstance(peer, tuple) else "")
        self.inner.connection_made(transport)
        self._start_read_timer(self._settings.header_seconds)
        if not self._connections.admit(self):
            self._refuse(over_capacity())

    def connection_lost(self, exc: Exception | None) -> None:
        self._discarding = True
        self._stop_read_timer()
        self._stop_write_timer()
        self._connections.remove(self)
        self.inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()
        self._write_timer = self._loop.call_later(self._settings.body_seconds, self.abort)

    def resume_writing(self) -> None:
        self.inner.resume_writing()
        self._stop_write_timer()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if self._frames:
            self._receive_frames(data, self._frames)
            return
        if self._idle:
            self._start_read_timer(self._settings.header_seconds)
        self._parse(data)

    def _start_read_timer(self, seconds: float) -> None:
        """Starts the timer that closes the connection unless what is awaited happens in time."""
        self._stop_read_timer()
        self._read_timer = self._loop.call_later(seconds, self.abort)

    def _stop_read_timer(self) -> None:
        self._idle = False
        if self._read_timer:
            self._read_timer.cancel()
        self._read_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
        self._write_timer = None

    def _keep_alive(self) -> None:
        """Waits for the next request."""
        self._stop_read_timer()
        self._idle = True
        self._read_timer = self._loop.call_later(KEEP_ALIVE, self._end_keep_alive)

    def _end_keep_alive(self) -> None:
        self.transport.close()
        self._start_read_timer(self._settings.body_seconds)  # until the peer has read the rest

    # Requests

    def _parse(self, data: bytes) -> None:
        self._body_bytes, self._headers_ended = 0, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_on()
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            if self.busy:  # the request before the invalid one is complete
                self._pass_on()
            self._refuse(ApiError(400, "expected an HTTP/1.1 request"))
            return
        self._pass_on()
        if self._headers_ended or self._body_bytes * 2 >= len(data):
            self._framing_bytes = 0
            return
        self._framing_bytes += len(data) - self._body_bytes
        if not self.busy and self._framing_bytes > (cap := self._settings.max_header_bytes):
            self._refuse(headers_too_long(cap))

    def _pass_on(self) -> None:
        """Passes to `inner` what was parsed."""
        self._end_chunk()
        if data := b"".join(self._parsed):
            self._parsed.clear()
            self.inner.data_received(data)

    def _end_chunk(self) -> None:
        if body := b"".join(self._body):
            self._body.clear()
            self._parsed.append(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    def _upgrade(self, rest: bytes) -> None:
        """Handles a request with an Upgrade header. Only the route for live audio is a WebSocket: others are parsed
        again without that header. (Java's client offers HTTP/2 this way with every request, and llhttp would treat the
        body as the other protocol's.)"""
        method = self._parser.get_method()
        offers = [value.lower() for name, value in self._headers if name.lower() == b"upgrade"]
        path = self._url.partition(b"?")[0]
        self._headers = [pair for pair in self._headers if pair[0].lower() not in UPGRADE]
        if method == b"GET" and path == REALTIME and offers == [b"websocket"]:
            self._open_websocket(rest)
        elif method == b"CONNECT":
            self._refuse(ApiError(400, "CONNECT isn't supported: this server is not a proxy"))
        else:
            self._parse(self._request_headers() + rest)

    def _request_headers(self) -> bytes:
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, version)]
        lines += [name + b": " + value for name, value in self._headers]
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, error: ApiError) -> None:
        """Sends an error for an incomplete or invalid request, and closes the connection."""
        self._discarding = True
        if self.busy:  # it came after a complete request, whose response comes first
            return
        if not (self._in_body and self._response_started):
            status, headers, body = envelope(error, new_id())
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            lines += [
                name + b": " + value
                for name, value in [*headers, *SECURITY_HEADERS, (b"connection", b"close")]
            ]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
            access.info("a connection was refused with %d", status)
        self.transport.close()
        self._start_read_timer(self._settings.header_seconds)  # until the peer has read the error

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if self._answering:
            raise ValueError("a request came before the last one was answered")
        self._url, self._headers = b"", []
        self._in_headers, self._framing_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # later ones are trailers, which are ignored
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self._origin = b""
        if absolute := ABSOLUTE.fullmatch(self._url):
            # uvicorn would drop the name, and fail where no path follows it.
            self._origin = absolute[1]
            self._url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        httptools.parse_url(self._url).path.decode(
            "ascii"
        )  # raises for targets that uvicorn refuses
        self._chunked = any(name.lower() == b"transfer-encoding" for name, _ in self._headers)
        self._in_headers, self._in_body, self._headers_ended = False, True, True
        self._begin_response()
        self._parsed.append(self._request_headers())

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self._end_chunk()
        if self._chunked:
            self._parsed.append(b"0\r\n\r\n")
        self._in_body = False
        if not self._answering:  # the rest of a body whose request is already answered
            self._keep_alive()

    # The response

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls an application for the last request."""
        self._called, closes, ended = True, False, False
        if self._origin and scope["type"] == "http":
            scope["extensions"] = {
                **scope.get("extensions", {}),
                "target": {"origin": self._origin},
            }

        start: list[Message] = []  # of a response to HEAD

        async def observed(message: Message) -> None:
            if scope.get("method") == "HEAD":
                # With the headers its client has the whole response, and may send the next request at once.
                if message["type"] == "http.response.start":
                    start.append(message)
                elif not message.get("more_body"):
                    await pass_on(start.pop())
                    await pass_on({"type": "http.response.body", "body": b""})
            else:
                await pass_on(message)

        async def pass_on(message: Message) -> None:
            nonlocal closes, ended
            if message["type"] == "http.response.start":
                self._response_started = True
                headers = [*self._headers, *message.get("headers", ())]
                closes = self._parser.get_http_version() == "1.0" or _has_close(headers)
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if is_last and closes and self._in_body:
                await send({**message, "more_body": True})
                await self._discard_body(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)
            if is_last:
                ended = True
                self._end_response()

        try:
            await app(scope, receive, observed)
        finally:
            if not ended:
                self._end_response()

    async def _discard_body(self, receive: Receive) -> None:
        """Receives the rest of a body whose response was sent. A connection that were closed before would be reset, and
        its client wouldn't receive the response."""
        if any(name.lower() == b"expect" for name, _ in self._headers):
            return  # the client waits before it sends the body
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.header_seconds):
                while self._in_body and (await receive())["type"] != "http.disconnect":
                    pass

    def _begin_response(self) -> None:
        self._stop_read_timer()
        self.idle_since = self._loop.time()
        self._called, self._answering, self._response_started = False, True, False

    def _end_response(self) -> None:
        self._answering = False
        self.idle_since = self._loop.time()
        if self._discarding:
            self.transport.close()
        if self._frames or self.transport.is_closing():
            self._start_read_timer(self._settings.body_seconds)  # until the peer has read the rest
        elif self._in_body:
            self._start_read_timer(self._settings.header_seconds)
        else:
            self._keep_alive()

    # WebSockets

    def _open_websocket(self, rest: bytes) -> None:
        if rest:
            self._refuse(ApiError(400, "expected nothing after the headers of a WebSocket request"))
            return
        self._in_headers = False
        self._begin_response()
        self._headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        self.inner.data_received(self._request_headers())
        # uvicorn has set its protocol for WebSockets as the transport's.
        self.inner = cast(asyncio.Protocol, self.transport.get_protocol())
        assert self.inner is not self
        self.transport.set_protocol(self)
        self._frames = FrameCounter()
        self._loop.call_soon(self._check_opening)

    def _check_opening(self) -> None:
        """Refuses an opening request that uvicorn has ignored, because its library can't read the headers."""
        if not self._called and not self.transport.is_closing():
            self._answering = False
            self._refuse(ApiError(400, "the headers of the WebSocket request can't be read"))

    def _receive_frames(self, data: bytes, frames: FrameCounter) -> None:
        if self.transport.get_write_buffer_size() > self._settings.max_live_event_bytes:
            self.abort()
        elif frames.feed(data) > MAX_FRAGMENTS:
            self._discarding = True
            self.transport.write(close_frame(MESSAGE_TOO_BIG))
            self.transport.close()
            self._start_read_timer(self._settings.body_seconds)
        else:
            self.inner.data_received(data)


def _has_close(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a header says that the connection ends with the response."""
    return any(n.lower() == b"connection" and b"close" in value.lower() for n, value in headers)
