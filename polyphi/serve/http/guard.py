"""Checks of every request, and of every WebSocket, before routing: host, origin, API key, size and time.

>>> app.add_middleware(AccessGuard, settings=settings, quotas=quotas)       # the last one added runs first

`AccessGuard` checks complete headers: Host (against DNS rebinding), Origin (against forged requests, and for CORS) and
API keys. Then it receives the body within its limits of size, time and memory. Of a WebSocket it checks the opening
request; realtime.py limits what follows. connection.py has the limits that apply before headers are complete.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyphi.serve.admission.quotas import QuotaExceeded, Quotas, Reservation, client_of
from polyphi.serve.admission.settings import Settings, check_key
from polyphi.serve.http.errors import ApiError, body_for

log = logging.getLogger("polyphi.serve")
access = logging.getLogger("polyphi.serve.access")

PUBLIC = frozenset({"/", "/health", "/ready", "/live"})
"""Paths that need no key, for GET and HEAD only; compared exactly."""
PROBES = PUBLIC - {"/"}
"""Paths that are answered beyond every limit: they say whether the server works."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
"""Listen addresses that stand for all of the machine's addresses."""
BODIES = frozenset({"application/json", "multipart/form-data"})
BLOCK = 64 << 10
"""Bytes of a body, or of a response, that are passed on at once."""
SINGLE_HEADERS = frozenset(
    {b"host", b"origin", b"content-type", b"content-length", b"authorization", b"x-api-key"}
)
"""Headers that must occur once: of two values, a proxy in front may have used the other one."""
PORTS = {b"http": "80", b"https": "443"}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?/?")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
SUBPROTOCOL_KEY = "openai-insecure-api-key."
"""Prefix of the subprotocol with which pages send their key, as in OpenAI's API."""
HEADER_NAMES = re.compile(rb"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+)*")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Default headers of every response; a response may set its own value."""

Headers = list[tuple[bytes, bytes]]


def envelope(error: ApiError, request_id: str, path: str = "") -> tuple[int, Headers, bytes]:
    """(status, headers, body) of the response for an error of the API at a path."""
    body = json.dumps(body_for(error, path)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    return error.status, headers, body


def new_id() -> str:
    return f"req-{secrets.token_hex(8)}"


class AccessGuard:
    """ASGI middleware that passes allowed requests to `app` with their complete body, and answers all others itself.

    It sets in `scope["state"]` (`request.state`): `request_id`; `tenant`, bytes that differ between API keys (b"" where
    none are needed) and reveal nothing about them; `client` (quotas.py); `body`, a bytearray, which the app may
    replace; `bytes`, the request's reservation of memory, which is released at its end.
    """

    def __init__(self, app: ASGIApp, settings: Settings, quotas: Quotas | None = None) -> None:
        for key in settings.keys:
            check_key(key)
        for name in settings.hosts:
            if name != "*" and not _is_address(name) and not NAME.fullmatch(name.lower()):
                raise ValueError(f"expected a host name without scheme and port, found {name!r}")
        for origin in settings.origins:
            if origin not in {"*", "null"} and not ORIGIN.fullmatch(origin.lower()):
                raise ValueError(
                    f"expected an origin such as https://example.org:8443, found {origin!r}"
                )
        self.app = app
        self.settings = settings
        secret = secrets.token_bytes(32)
        self.keys = [
            (_digest(key.encode()), _digest(key.encode(), secret)) for key in settings.keys
        ]
        self.any_address = settings.host in WILDCARDS and not settings.hosts
        own_names = set() if settings.host in WILDCARDS else {settings.host}
        self.hosts = {_plain(name) for name in {*LOOPBACK_NAMES, *own_names, *settings.hosts}}
        self.origins = {origin.rstrip("/").lower() for origin in settings.origins}
        self.bytes = (quotas or Quotas(settings)).bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await Exchange(self, scope, receive, send).run()


class Exchange:
    """One request and its response, or one WebSocket."""

    def __init__(self, guard: AccessGuard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.started_at = time.monotonic()
        self.socket = scope["type"] == "websocket"
        self.method: str = "WS" if self.socket else scope["method"]
        self.headers: dict[bytes, bytes] = {}
        request_ids = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
        valid = len(request_ids) == 1 and REQUEST_ID.fullmatch(request_ids[0])
        self.id = request_ids[0].decode() if valid else new_id()
        self.cors: Headers = []
        self.body = bytearray()
        self.bytes: Reservation | None = None
        self.status: int | None = None
        self.ended = self.disconnected = self._body_sent = False
        self._received = False
        """Whether the body was received completely, or the client has disconnected."""
        self._start: Message | None = None
        """The start of a response to HEAD, which is sent with its end."""

    async def run(self) -> None:
        try:
            await self._handle()
        except ApiError as error:
            await self._send_error(error)
        except asyncio.CancelledError:  # the server is stopping
            await self._send_error(
                ApiError(503, "the server is stopping; try again", code="stopping")
            )
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            log.error("request %s failed", self.id, exc_info=error)
            failure = ApiError(500, f"the server failed; its log has details under {self.id}")
            await self._send_error(failure)
        finally:
            if self.bytes:
                self.bytes.release()
            connection = self.scope.get("state", {}).get("connection")  # of connection.py
            if connection is not None and not self.ended:
                connection.response_failed()
            path = self.scope.get("raw_path") or self.scope["path"].encode()
            log_path = quote(path[:200], safe="/%")  # escaped, so that it can't forge a log line
            status = 499 if self.disconnected and not self.ended else self.status or 500
            ms = (time.monotonic() - self.started_at) * 1000
            access.info("%s %s %d %.1f ms %s", self.method, log_path, status, ms, self.id)

    async def _handle(self) -> None:
        self._check_headers()
        connection = self.scope.get("state", {}).get("connection")
        if connection is not None and connection.surplus and self.scope["path"] not in PROBES:
            raise over_capacity()
        self._check_host()
        if (origin := self.headers.get(b"origin")) is not None:
            self._check_origin(origin.decode("latin-1").lower())
            if self.method == "OPTIONS" and b"access-control-request-method" in self.headers:
                await self._preflight()
                return
        tenant = self._check_key()
        address, _ = self.scope.get("client") or ("", 0)
        client = client_of(tenant, address)
        self.bytes = self.guard.bytes.take(client, 0)
        state = {"request_id": self.id, "tenant": tenant, "client": client, "bytes": self.bytes}
        self.scope.setdefault("state", {}).update(state, body=self.body)
        if self.socket:
            await self.guard.app(self.scope, self._receive, self.send_socket)
            return
        self._check_body()
        await self._receive_body()
        if self.disconnected:
            return
        scope = self.scope
        if self.method == "HEAD":  # handled as GET; uvicorn omits the body
            scope = {**scope, "method": "GET"}
        await self.guard.app(scope, self.receive, self.send)
        if self.status is None and not self.disconnected:
            raise RuntimeError("the app sent no response")

    def _check_headers(self) -> None:
        size = len(self.scope.get("raw_path") or b"") + len(self.scope.get("query_string", b""))
        for name, value in self.scope["headers"]:
            size += len(name) + len(value) + len(b": \r\n")
            name = name.lower()
            if name in SINGLE_HEADERS and name in self.headers:
                raise ApiError(400, f"expected the header {name.decode()} once, found more")
            self.headers[name] = value
        if size > (cap := self.guard.settings.max_header_bytes):
            raise headers_too_long(cap)

    def _check_host(self) -> None:
        """Allows only this server's names: otherwise a page whose own name resolves to this server would count as the
        same origin. A name in the request target takes precedence over the Host header (RFC 9112, 3.2.2), so both must
        be this server's and equal."""
        target = self.scope.get("extensions", {}).get("target")
        if target is None:
            self._check_name(self.headers.get(b"host", b""))
            return
        scheme, _, name = target["origin"].lower().partition(b"://")
        if scheme not in PORTS:
            raise ApiError(400, "expected a path or an http(s) URL as the request target")
        host = self.headers.setdefault(b"host", name)
        self._check_name(name)
        self._check_name(host)
        if _authority(name, scheme) != _authority(host, scheme):
            raise ApiError(
                400,
                "the request target and the Host header name different servers; send a path, or the same name in both",
            )

    def _check_name(self, host: bytes) -> None:
        match = HOST.fullmatch(host.decode("latin-1").lower())
        name = _plain(match[1]) if match else ""
        if match and (
            name in self.guard.hosts
            or "*" in self.guard.hosts
            or (self.guard.any_address and _is_address(name))
        ):
            return
        expected = "its IP address or localhost" if self.guard.any_address else "localhost"
        raise ApiError(
            403,
            f"the Host header must name this server: use {expected}, or start the server with --allow-host NAME",
            code="host_not_allowed",
        )

    def _check_origin(self, origin: str) -> None:
        """Allows this server's own page and the configured origins."""
        allowed = self.guard.origins
        if "*" in allowed:
            self.cors = [(b"access-control-allow-origin", b"*")]
        elif origin in allowed:
            self.cors = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
            ]
        else:
            scheme, _, authority = origin.partition("://")
            port = {"http": ":80", "https": ":443"}.get(scheme)
            host = self.headers[b"host"].decode("latin-1").lower()
            if port is None or authority.removesuffix(port) != host.removesuffix(port):
                raise ApiError(
                    403,
                    "the web page has another origin; to allow it, start the server with --allow-origin ORIGIN",
                    code="origin_not_allowed",
                )
            return
        self.cors.append((b"access-control-expose-headers", b"x-request-id, retry-after"))

    async def _preflight(self) -> None:
        """Answers a CORS preflight: what pages of allowed origins may send, never cookies."""
        headers: Headers = []
        if self.cors:
            requested = self.headers.get(b"access-control-request-headers", b"")
            headers = [
                (b"access-control-allow-methods", b"GET, POST, DELETE"),
                (
                    b"access-control-allow-headers",
                    requested if HEADER_NAMES.fullmatch(requested) else b"",
                ),
                (b"access-control-max-age", b"600"),
            ]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body"})

    def _check_key(self) -> bytes:
        """The tenant of the request's API key. Compares equally long digests of all keys, each in constant time."""
        if not self.guard.keys:
            return b""
        if self.scope["path"] in PUBLIC and self.method in {"GET", "HEAD"}:
            return b""
        scheme, _, credential = self.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            credential = self.headers.get(b"x-api-key", self._subprotocol_key())
        digest, tenant = _digest(credential.strip()), b""
        for key, name in self.guard.keys:
            if hmac.compare_digest(digest, key):
                tenant = name
        if not tenant:
            raise ApiError(
                401,
                "expected an API key of this server: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return tenant

    def _subprotocol_key(self) -> bytes:
        """The API key among the subprotocols of a WebSocket: pages can't set its headers."""
        for name in self.scope.get("subprotocols", ()):
            if name.startswith(SUBPROTOCOL_KEY):
                return name.removeprefix(SUBPROTOCOL_KEY).encode()
        return b""

    def _check_body(self) -> None:
        """Checks Content-Type: web pages can post plain text and URL-encoded forms anywhere without a preflight."""
        has_body = b"transfer-encoding" in self.headers or self._declared_length()
        if self.method != "POST" and not has_body:
            return
        if self._content_type() not in BODIES:
            raise ApiError(
                415,
                f"Content-Type must be {' or '.join(sorted(BODIES))}",
                code="unsupported_media_type",
            )
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "bodies must be sent without Content-Encoding")

    def _content_type(self) -> str:
        content_type = self.headers.get(b"content-type", b"").decode("latin-1")
        return content_type.partition(";")[0].strip().lower()

    def _declared_length(self) -> int | None:
        """The bytes of the body according to Content-Length, None without it."""
        length = self.headers.get(b"content-length")
        if length is None or b"transfer-encoding" in self.headers:
            return None
        if not length.isdigit() or len(length) > 18:
            raise ApiError(400, "Content-Length must be a number of bytes")
        return int(length)

    async def _receive_body(self) -> None:
        """Receives the whole body. Raises ApiError if it is too large, too slow or not as long as declared, or if there
        is no memory for it."""
        settings, declared = self.guard.settings, self._declared_length()
        cap = settings.max_body_bytes
        if declared is not None and declared > cap:
            raise ApiError(413, f"expected a body of at most {cap} bytes, found {declared}")
        try:
            async with asyncio.timeout(settings.body_seconds):
                while not self._received:
                    self._add(await self._receive_piece(), declared)
                    if len(self.body) > cap:
                        raise ApiError(413, f"expected a body of at most {cap} bytes, found more")
        except TimeoutError:
            raise ApiError(
                408,
                f"expected the whole body within {settings.body_seconds:g} s",
                headers={"Connection": "close"},
            ) from None

    async def _receive_piece(self) -> bytes:
        """The next bytes of the body, whose last ones, or the client's disconnection, set `_received`."""
        message = await self._receive()
        self._received = not message.get("more_body", False)
        self.disconnected = message["type"] == "http.disconnect"
        piece: bytes = message.get("body", b"")
        return piece

    def _add(self, piece: bytes, declared: int | None) -> None:
        """Adds bytes to the body."""
        assert self.bytes is not None
        try:
            self.bytes.grow(len(piece))
        except QuotaExceeded as full:
            raise over_share(full) if full.by_client else over_capacity() from None
        self.body += piece
        size, ends = len(self.body), self._received and not self.disconnected
        if declared is not None and (size > declared or (ends and size < declared)):
            raise ApiError(
                400,
                f"expected a body of {declared} bytes (Content-Length), found {size}",
                headers={"Connection": "close"},
            )

    async def _discard_body(self) -> None:
        """Receives the rest of a body whose response was sent. A connection that were closed before would be reset, and
        its client wouldn't receive the response."""
        if b"expect" in self.headers:
            return  # the client waits before it sends the body
        with suppress(TimeoutError):
            async with asyncio.timeout(self.guard.settings.header_seconds):
                while not self._received:
                    await self._receive_piece()

    async def receive(self) -> Message:
        """The app's `receive`: the pieces of the body, then the disconnect of the client."""
        body: bytearray = self.scope["state"]["body"]
        if not self._body_sent or body:
            assert self.bytes is not None
            self._body_sent = True
            await asyncio.sleep(0)  # the app may read all pieces without a pause
            piece = bytes(body[:BLOCK])
            del body[:BLOCK]
            self.bytes.grow(-len(piece))
            return {"type": "http.request", "body": piece, "more_body": bool(body)}
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.ended:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                (n, v) for n, v in message.get("headers", ()) if n.lower() != b"x-request-id"
            ]
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY_HEADERS if name not in present]
            headers += [*self.cors, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        if self.method == "HEAD":
            # With the headers its client has the whole response, and may send the next request at once.
            if message["type"] == "http.response.start":
                self._start = message
                return
            if message.get("more_body"):
                return
            assert self._start is not None
            if self.bytes:
                self.bytes.release()
            await self._send(self._start)
            await self._send(message)
        else:
            await self._send_parts(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.ended = True

    async def _send_parts(self, message: Message) -> None:
        """Passes a message on, its body in parts of at most `BLOCK` bytes, each when the client has read those before:
        uvicorn copies what the system doesn't take at once."""
        body = memoryview(message.get("body", b""))
        while len(body) > BLOCK:
            await self._send({"type": message["type"], "body": body[:BLOCK], "more_body": True})
            body = body[BLOCK:]
            message = {**message, "body": body}
            # The system may take megabytes at once, of each of many responses: others run in between.
            await asyncio.sleep(0)
        if message["type"] == "http.response.body" and not message.get("more_body") and self.bytes:
            self.bytes.release()  # before its client can send the next request
        await self._send(message)

    async def send_socket(self, message: Message) -> None:
        """The `send` of the app of a WebSocket."""
        if self.status is None:
            first = message["type"]
            self.status = {"websocket.accept": 101, "websocket.close": 403}.get(first)
            self.status = self.status or message["status"]
            if first != "websocket.close":
                headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
                message = {**message, "headers": headers}
        await self._send(message)

    async def _send_error(self, error: ApiError) -> None:
        """Sends an error response; if a response has already started, returning without its end closes the socket."""
        if self.status is not None:
            return
        status, headers, body = envelope(error, self.id, self.scope["path"])
        if self.socket:
            self.status = status
            if "websocket.http.response" not in self.scope.get("extensions", {}):
                await self._send({"type": "websocket.close", "code": 1008})
                return
            start = {"type": "websocket.http.response.start", "status": status}
            await self._send({**start, "headers": [*headers, *SECURITY_HEADERS]})
            await self._send({"type": "websocket.http.response.body", "body": body})
        else:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            self.body.clear()
            if self.bytes:
                self.bytes.resize(0)
            closes = self.scope.get("http_version") == "1.0" or "Connection" in error.headers
            closes = closes or b"close" in self.headers.get(b"connection", b"").lower()
            more = closes and not self._received and self.method != "HEAD"
            await self.send({"type": "http.response.body", "body": body, "more_body": more})
            if more:
                await self._discard_body()
                await self.send({"type": "http.response.body"})


def over_share(full: QuotaExceeded) -> ApiError:
    """The error for a client whose requests take too much memory for another body."""
    return ApiError(
        429,
        f"your requests may have {full.limit:,} bytes together at present; wait for answers to some of them",
        code="too_many_bytes",
        headers={"Retry-After": "1"},
    )


def over_capacity() -> ApiError:
    """The error where all clients together have too many connections, or too much memory."""
    return ApiError(
        503,
        "the server's capacity for connections or bodies is used up; try again later",
        headers={"Retry-After": "1"},
    )


def headers_too_long(cap: int) -> ApiError:
    message = f"expected request headers of at most {cap} bytes, found more"
    return ApiError(431, message, headers={"Connection": "close"})


def _digest(key: bytes, secret: bytes = b"") -> bytes:
    return hashlib.blake2b(key, key=secret, digest_size=32).digest()


def _authority(host: bytes, scheme: bytes) -> tuple[str, str]:
    """The name and port of a valid Host header or target."""
    match = HOST.fullmatch(host.decode("latin-1").lower())
    assert match
    return _plain(match[1]), match[2] or PORTS[scheme]


def _plain(name: str) -> str:
    """A host name in canonical form: no brackets, no root dot, IP addresses in short form."""
    name = name.strip("[]").lower().removesuffix(".")
    return str(ipaddress.ip_address(name)) if _is_address(name) else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
