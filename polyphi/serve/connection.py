"""What uvicorn's protocol doesn't bound: slow or endless heads, endless framing, answers that nobody reads, too many
connections.

>>> uvicorn.Config(app, http=protocol(settings), ws="none", access_log=False, server_header=False)

Where room runs out, whoever has held it longest without a whole request to show for it gives way: so a hostile peer
loses its own place and not that of others. Whole heads are judged by guard.py.
"""

import asyncio
import re
from asyncio import TimerHandle
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polyphi.serve.errors import ApiError
from polyphi.serve.guard import SECURITY, access, envelope, new_id, no_room, too_long_a_head
from polyphi.serve.settings import Settings

ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
"""A request target as proxies receive it: `http://name:port`, and the path. guard.py checks the name."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds, of which it has none itself before a request's head is whole.

    Of its two parsers the one on llhttp, because hostile framing is cheap for it: a piece of 256 KiB made of one-byte
    chunks keeps the event loop, and so everybody, for 3 ms, where h11 takes 240 ms (measured on one core).

    A head must come within `header_seconds` of the connection, or of its first byte on one that was used before, and
    within `max_header_bytes`; so must the framing of a body between two parts of it, trailers included. What is left of
    a body when its request is answered is thrown away for as long. An answer must be read within `body_seconds` for
    each bufferful. Requests are answered one at a time: one that is sent before the last is answered is not read.
    """

    settings: Settings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._listening: TimerHandle | None = None
        self._telling: TimerHandle | None = None
        self._deaf = False
        """Whether what comes is thrown away, the last request of this connection having been heard."""
        self._in_head = False
        self._framing = 0
        """Bytes of an unfinished head, or since there was as much body as framing."""
        self._heard = 0
        """Bytes of body within the piece being parsed."""
        self._since = self.loop.time()
        self._listen()
        if len(self.connections) > self.settings.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._stop_listening()
        if self._telling:
            self._telling.cancel()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        """Whether a whole request is being answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _make_room(self) -> None:
        """Ends the connection that has been longest without a whole request, or else this one."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        idle = [connection for connection in others if not connection._busy]
        if not idle:
            self._refuse(no_room())
            return
        longest = min(idle, key=lambda connection: connection._since)
        self.connections.discard(longest)
        longest.transport.abort()

    def _listen(self, seconds: float | None = None) -> None:
        """What is awaited must have come in time."""
        self._stop_listening()
        self._listening = self.loop.call_later(
            seconds or self.settings.header_seconds, self.transport.abort
        )

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening.cancel()
        self._listening = None

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._listening is None and (self.cycle is None or self.cycle.response_complete):
            self._listen()
        self._heard = 0
        cycle = self.cycle
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(ApiError(400, "this is not a request of HTTP/1.1"))
            return
        if self.cycle is not cycle or self._heard * 2 >= len(data):
            self._framing = 0
            return
        self._framing += len(data) - self._heard
        if not self._busy and self._framing > (cap := self.settings.max_header_bytes):
            self._refuse(too_long_a_head(cap))

    def _decline(self, rest: bytes) -> None:
        """No other protocol is spoken here: a request that would change to one is read again as if it wouldn't. (Java's
        client offers HTTP/2 that way with every request, and llhttp takes the body for the other protocol's.)"""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(ApiError(400, "this is no proxy"))
            return
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        lines += [n + b": " + v for n, v in self.headers if n not in (b"upgrade", b"connection")]
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _last_one(self) -> None:
        """Hears no more, and hangs up when what was heard is answered."""
        self._deaf = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _refuse(self, error: ApiError) -> None:
        """Answers what isn't a whole request, and hangs up."""
        cycle = self.cycle
        if self._busy:  # it came behind a request that was whole
            self._last_one()
            return
        self._deaf = True
        if cycle is None or not (cycle.more_body and cycle.response_started):
            status, headers, body = envelope(error, new_id())
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            lines += [
                name + b": " + value
                for name, value in [*headers, *SECURITY, (b"connection", b"close")]
            ]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
            access.info("a connection was refused with %d", status)
        self.transport.close()
        self._listen()  # until the peer has read that

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request came before the last one was answered")
        super().on_message_begin()
        self._in_head = True
        self._framing = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # later ones are trailers, of which none is asked for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head = False
        self._stop_listening()
        self._since = self.loop.time()
        if absolute := ABSOLUTE.fullmatch(self.url):
            # uvicorn would throw the name away, and fail where no path follows it.
            self.scope["extensions"] = {"target": {"origin": absolute[1]}}
            self.url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._heard += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if self.cycle.more_body:  # uvicorn takes no note of the end of what was answered before
            self.cycle.more_body = False
            self._stop_listening()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()
        if self.transport.is_closing():
            self._listen(self.settings.body_seconds)  # until the peer has read the rest

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._listen(self.settings.body_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._telling = self.loop.call_later(self.settings.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._telling:
            self._telling.cancel()
        self._telling = None


def protocol(settings: Settings) -> type[Connection]:
    """The `http` of a `uvicorn.Config`."""
    return type("Connection", (Connection,), {"settings": settings})
