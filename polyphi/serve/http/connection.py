"""Deadlines and limits over uvicorn's protocols: for slow or endless headers, endless framing, unread responses, and
the number of connections.

>>> connections = Connections(settings)
>>> uvicorn.Config(app, http=connections.protocol, ws=WebSocketConnection, access_log=False, server_header=False)

guard.py checks complete headers and receives bodies. Slower clients than these deadlines allow are a reverse proxy's
(deploy/nginx.conf).
"""

import asyncio
import re
from asyncio import TimerHandle
from collections import Counter
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

from polyphi.serve.admission.quotas import client_of
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.guard import SECURITY_HEADERS, access, envelope, headers_too_long, new_id

ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
"""A request target in absolute form, as sent to proxies: `http://name:port` and the path. guard.py checks the name."""
REALTIME = b"/v1/realtime"
"""The path that can be upgraded to a WebSocket."""
KEEP_ALIVE = 15
"""Seconds that a connection stays open between a response and the next request."""
MAX_FRAGMENTS = 1024
"""Frames of one message; they may be empty, so a limit on bytes is none on their number."""
MESSAGE_TOO_BIG = 1009
"""The code with which a WebSocket is closed for a message that is too big."""


class Connection:
    """What is known of one connection, of HTTP or of a WebSocket. The scope's state has it as `connection`."""

    transport: asyncio.Transport
    address = b""

    def __init__(self, connections: "Connections") -> None:
        self.admitted = False
        """Whether a request of this connection has been admitted (server.py), and its response is incomplete."""
        self.surplus = False
        """Whether the connection was opened beyond the limit: then it serves probes only."""
        self.settings = connections.settings
        self._connections, self._loop = connections, asyncio.get_running_loop()
        self._timers: dict[str, TimerHandle] = {}
        self._is_closed = False
        self.since = self._loop.time()
        """When the connection was opened, or its last request ended."""

    def opened(self, transport: asyncio.Transport) -> None:
        """Counts the connection, which may close another one."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.address = client_of(b"", peer[0] if isinstance(peer, tuple) else "")
        self._connections.add(self)

    def closed(self) -> None:
        self._is_closed = True
        self.stop_deadline("read")
        self.stop_deadline("write")
        self._connections.remove(self)

    def start_deadline(self, name: str, seconds: float) -> None:
        """Closes the connection after so many seconds, unless the deadline is stopped or started again."""
        self.stop_deadline(name)
        if not self._is_closed:
            self._timers[name] = self._loop.call_later(seconds, self.transport.abort)

    def stop_deadline(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def response_ended(self) -> None:
        """Counts the connection as idle."""
        self.admitted, self.since = False, self._loop.time()

    def response_failed(self) -> None:
        """Counts the connection as idle, and gives the peer some time to read the rest of an incomplete response, or of
        a WebSocket."""
        self.response_ended()
        self.start_deadline("read", self.settings.body_seconds)


class Connections:
    """The open connections of a server. Beyond `max_connections`, the address with the most connections loses the one
    that has been idle, or without an admitted request, for longest."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._open: set[Connection] = set()

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """The protocol class for the `http` argument of a `uvicorn.Config`."""
        return cast(type[asyncio.Protocol], partial(HttpConnection, self))

    def add(self, connection: Connection) -> None:
        """Adds a new connection, in place of another one where necessary."""
        self._open.add(connection)
        if len(self._open) <= self.settings.max_connections:
            return
        counts = Counter(one.address for one in self._open)
        others = [one for one in self._open if not one.admitted and one is not connection]
        longest = max(others, key=lambda one: (counts[one.address], -one.since), default=None)
        if longest is not None and counts[longest.address] >= counts[connection.address]:
            self._open.discard(longest)
            longest.transport.abort()
        else:
            connection.surplus = True

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)


class HttpConnection(HttpToolsProtocol):
    """uvicorn's protocol of HTTP with deadlines and limits.

    Headers must arrive within `header_seconds` of the connection (of their first byte on a reused connection) and take
    at most `max_header_bytes`. The framing of a body, trailers included, may take as many bytes more than the body. A
    client must read each bufferful of a response within `body_seconds`. Requests are answered one at a time: one that
    arrives before the last is answered is not read.
    """

    def __init__(
        self,
        connections: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.connection = Connection(connections)
        app_state = {**app_state, "connection": self.connection}
        super().__init__(config, server_state, app_state, _loop)
        self._settings = connections.settings
        self._in_headers = False
        self._complete = True
        """Whether the last request was received completely."""
        self._ended = False
        """Whether received bytes are ignored, because the last request of this connection was received."""
        self._body_bytes = self._other_bytes = 0
        """Bytes of the body, and those of the headers or of the body's framing."""

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.connection.opened(transport)
        self.connection.start_deadline("read", self._settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.connection.closed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.connection.start_deadline("write", self._settings.body_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.connection.stop_deadline("write")

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.connection.start_deadline("read", self._settings.body_seconds)

    def data_received(self, data: bytes) -> None:
        if self._ended or self.transport.is_closing():
            return
        if self.timeout_keep_alive_task is not None:  # the first bytes of another request
            self._unset_keepalive_if_required()
            self.connection.start_deadline("read", self._settings.header_seconds)
        self._other_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(ApiError(400, "expected an HTTP/1.1 request"))
        else:
            most = self._settings.max_header_bytes
            if self._other_bytes > most + self._body_bytes:
                self._refuse(headers_too_long(most))

    def _upgraded(self, rest: bytes) -> None:
        """Handles the headers of a request with an Upgrade header. Only the route for live audio is a WebSocket: others
        are parsed again without that header. (Java's client offers HTTP/2 in this way with every request, and llhttp
        would treat the body as the other protocol's.)"""
        if not self._should_upgrade():
            headers = [pair for pair in self.headers if pair[0] not in (b"upgrade", b"connection")]
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [name + b": " + value for name, value in headers]
            if self.parser.get_method() == b"CONNECT":
                self._refuse(ApiError(400, "CONNECT isn't supported: this server is not a proxy"))
            else:
                self._other_bytes = 0
                self.data_received(b"\r\n".join([*lines, b"", rest]))
        elif rest:
            self._refuse(ApiError(400, "expected nothing after the headers of a WebSocket request"))
        else:
            self.handle_websocket_upgrade()
            protocol = self.transport.get_protocol()
            assert isinstance(protocol, WebSocketConnection)
            if not protocol.handshake_initiated:
                self._refuse(ApiError(400, "the headers of the WebSocket request can't be read"))

    def _should_upgrade(self) -> bool:
        is_realtime = self.parser.get_method() == b"GET" and self.url.partition(b"?")[0] == REALTIME
        offers = [value for name, value in self.headers if name == b"upgrade"]
        return is_realtime and len(offers) == 1 and super()._should_upgrade()

    def _refuse(self, error: ApiError) -> None:
        """Sends an error for an incomplete or invalid request, and closes the connection."""
        self._ended = True
        answering = self.cycle is not None and not self.cycle.response_complete
        if (
            answering and self._complete
        ):  # it came after a complete request, whose response comes first
            self.cycle.keep_alive = False
            return
        if not (answering and self.cycle.response_started):
            status, headers, body = envelope(error, new_id())
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            lines += [
                name + b": " + value
                for name, value in [*headers, *SECURITY_HEADERS, (b"connection", b"close")]
            ]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
            access.info("a connection was refused with %d", status)
        self.transport.close()
        # Until the peer has read the error.
        self.connection.start_deadline("read", self._settings.header_seconds)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request came before the last one was answered")
        super().on_message_begin()
        self._in_headers, self._complete = True, False
        self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # later ones are trailers, which are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._should_upgrade():
            return
        self._in_headers, self._other_bytes = False, 0
        self.connection.stop_deadline("read")
        if absolute := ABSOLUTE.fullmatch(self.url):
            # uvicorn would drop the name, and fail where no path follows it.
            self.scope["extensions"] = {"target": {"origin": absolute[1]}}  # type: ignore[dict-item]
            self.url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._other_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._complete = True
        super().on_message_complete()
        if self.cycle.response_complete:  # it was the rest of a refused body
            self.connection.stop_deadline("read")
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # The response

    def on_response_complete(self) -> None:
        self.connection.response_ended()
        super().on_response_complete()
        if self.transport.is_closing():  # the peer has some time to read the rest
            self.connection.start_deadline("read", self._settings.body_seconds)
        elif not self._complete:  # the rest of a refused body is ignored
            self._unset_keepalive_if_required()
            self.connection.start_deadline("read", self._settings.header_seconds)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's protocol of WebSockets with limits: on the frames of a message, and on replies that aren't read."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.connection: Connection = app_state["connection"]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.connection.closed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.connection.start_deadline("write", self.connection.settings.body_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.connection.stop_deadline("write")

    def data_received(self, data: bytes) -> None:
        most = self.connection.settings.max_live_event_bytes
        if self.transport.get_write_buffer_size() > most:  # replies to pings
            self.transport.abort()
        elif not self.transport.is_closing():
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        if self.handshake_initiated:  # otherwise the protocol of HTTP refuses the request
            super().handle_parser_exception()

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        super().handle_cont(event)
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames, self.close_sent = [], True
            self.conn.fail(MESSAGE_TOO_BIG)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
            self.connection.start_deadline("read", self.connection.settings.body_seconds)
