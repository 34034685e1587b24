"""What every request passes before anything else: who may ask, for how long, and with how much.

>>> app.add_middleware(Guard, settings=settings)       # the last one added is the first one passed

`Guard` sees whole heads: names (Host, against DNS rebinding), pages (Origin, against forged requests and CORS), keys,
sizes and the time of bodies. Where room for bodies runs out, whoever holds most of it gives way: so a hostile peer
loses its own place and not that of others; and large bodies are read in turns that leave most of the time to others.
What comes before a head is whole is bounded by connection.py.
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
from collections import deque
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyphi.serve.errors import ApiError
from polyphi.serve.settings import Settings

log = logging.getLogger("polyphi.serve")
access = logging.getLogger("polyphi.serve.access")

PUBLIC = frozenset({"/", "/health", "/ready", "/live"})
"""Paths that need no key: written exactly so, and only to read."""
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
"""Addresses to listen on that mean all of the machine's."""
BODIES = frozenset({"application/json", "multipart/form-data"})
ONCE = frozenset(
    {b"host", b"origin", b"content-type", b"content-length", b"authorization", b"x-api-key"}
)
"""Headers that decide something here: of two, somebody in front may have read the other one."""
PORTS = {b"http": "80", b"https": "443"}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?/?")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HEADER_NAMES = re.compile(rb"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+)*")
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Of every answer that doesn't say otherwise itself."""

LARGE = 16 << 10
"""Bytes above which a body is read in its turn."""
REST = 3
"""Times as long as the reading of one took, nothing else that is large is read."""

Headers = list[tuple[bytes, bytes]]


def envelope(error: ApiError, request_id: str) -> tuple[int, Headers, bytes]:
    """An error as (status, headers, body) of an answer."""
    body = json.dumps(error.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    return error.status, headers, body


def new_id() -> str:
    return f"req-{secrets.token_hex(8)}"


class Guard:
    """Lets through to `app` what the settings allow, its body already whole, and answers the rest itself.

    The app finds in `scope["state"]` (`request.state`): `request_id`, and `tenant`, bytes that differ between API keys
    (b"" where none are needed) and tell nothing about them.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        for key in settings.keys:
            if not key or key != key.strip():
                raise ValueError("an API key must not be empty or have space around it")
        for name in settings.hosts:
            if name != "*" and not _is_address(name) and not NAME.fullmatch(name.lower()):
                raise ValueError(
                    f"expected the name of a host without scheme and port, found {name!r}"
                )
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
        own = set() if settings.host in WILDCARDS else {settings.host}
        self.hosts = {_plain(name) for name in {*OWN_NAMES, *own, *settings.hosts}}
        self.origins = {origin.rstrip("/").lower() for origin in settings.origins}
        self.bodies = Bodies(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await Exchange(self, scope, receive, send).run()
        else:  # no other protocol is spoken here
            await send({"type": "websocket.close", "code": 1008})


class Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.began = time.monotonic()
        self.headers: dict[bytes, bytes] = {}
        given = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
        harmless = len(given) == 1 and REQUEST_ID.fullmatch(given[0])
        self.id = given[0].decode() if harmless else new_id()
        self.cors: Headers = []
        self.body: Body | None = None
        self.status: int | None = None
        self.ended = self.gone = False

    async def run(self) -> None:
        try:
            await self._pass()
        except ApiError as error:
            await self._fail(error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # what panics in Rust is no Exception
            log.error("request %s failed", self.id, exc_info=error)
            await self._fail(ApiError(500, f"the server failed; its log has more under {self.id}"))
        finally:
            if self.body:
                self.body.free()
            path = self.scope.get("raw_path") or self.scope["path"].encode()
            shown = quote(path[:200], safe="/%")  # what can't forge a line
            status = 499 if self.gone and not self.ended else self.status or 500
            ms = (time.monotonic() - self.began) * 1000
            access.info("%s %s %d %.1f ms %s", self.scope["method"], shown, status, ms, self.id)

    async def _pass(self) -> None:
        self._check_head()
        self._check_host()
        if (origin := self.headers.get(b"origin")) is not None:
            self._check_origin(origin.decode("latin-1").lower())
            if (
                self.scope["method"] == "OPTIONS"
                and b"access-control-request-method" in self.headers
            ):
                await self._preflight()
                return
        tenant = self._check_key()
        self.scope.setdefault("state", {}).update(request_id=self.id, tenant=tenant)
        self._check_body()
        self.body = await self.guard.bodies.read(self._declared(), self._receive)
        if self.body is None:
            self.gone = True
            return
        scope = self.scope
        if scope["method"] == "HEAD":  # answered as GET; uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        await self.guard.app(scope, self.receive, self.send)
        if self.status is None and not self.gone:
            raise RuntimeError("the app gave no answer")

    def _check_head(self) -> None:
        size = len(self.scope.get("raw_path") or b"") + len(self.scope.get("query_string", b""))
        for name, value in self.scope["headers"]:
            size += len(name) + len(value) + len(b": \r\n")
            name = name.lower()
            if name in ONCE and name in self.headers:
                raise ApiError(400, f"the header {name.decode()} must be sent once, found more")
            self.headers[name] = value
        if size > (cap := self.guard.settings.max_header_bytes):
            raise too_long_a_head(cap)

    def _check_host(self) -> None:
        """Only names that are this server's: a page that makes its own name point here would pass for the same
        origin. A request target with a name in it counts more than the Host header (RFC 9112, 3.2.2), so both must be
        the server's, and the same."""
        target = self.scope.get("extensions", {}).get("target")
        if target is None:
            self._check_name(self.headers.get(b"host", b""))
            return
        scheme, _, name = target["origin"].lower().partition(b"://")
        if scheme not in PORTS:
            raise ApiError(400, "expected a path or an http(s) address as the target of a request")
        host = self.headers.setdefault(b"host", name)
        self._check_name(name)
        self._check_name(host)
        if _authority(name, scheme) != _authority(host, scheme):
            raise ApiError(
                400,
                "the target of the request and its Host header name different servers; send a path, or the same name",
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
        meant = "its IP address or localhost" if self.guard.any_address else "localhost"
        raise ApiError(
            403,
            f"the Host header must name this server: call it by {meant}, or start it with --allow-host NAME for each "
            "other name it is called by",
            code="host_not_allowed",
        )

    def _check_origin(self, origin: str) -> None:
        """Browsers say which page asks: this server's own, or one that was allowed."""
        allowed = self.guard.origins
        if "*" in allowed:
            self.cors = [(b"access-control-allow-origin", b"*")]
        elif origin in allowed:
            self.cors = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
            ]
        else:
            scheme, _, place = origin.partition("://")
            port = {"http": ":80", "https": ":443"}.get(scheme)
            host = self.headers[b"host"].decode("latin-1").lower()
            if port is None or place.removesuffix(port) != host.removesuffix(port):
                raise ApiError(
                    403,
                    "a web page of another origin asked; to allow it start the server with --allow-origin ORIGIN",
                    code="origin_not_allowed",
                )
            return
        self.cors.append((b"access-control-expose-headers", b"x-request-id, retry-after"))

    async def _preflight(self) -> None:
        """What a page of an allowed origin may send; never cookies. (One of the own origin needs no leave.)"""
        headers: Headers = []
        if self.cors:
            wanted = self.headers.get(b"access-control-request-headers", b"")
            headers = [
                (b"access-control-allow-methods", b"GET, POST"),
                (
                    b"access-control-allow-headers",
                    wanted if HEADER_NAMES.fullmatch(wanted) else b"",
                ),
                (b"access-control-max-age", b"600"),
            ]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body"})

    def _check_key(self) -> bytes:
        """The tenant whose key was given. All keys are compared, digests of one length, each in constant time."""
        if not self.guard.keys:
            return b""
        if self.scope["path"] in PUBLIC and self.scope["method"] in {"GET", "HEAD"}:
            return b""
        scheme, _, given = self.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = self.headers.get(b"x-api-key", b"")
        digest, tenant = _digest(given.strip()), b""
        for key, name in self.guard.keys:
            if hmac.compare_digest(digest, key):
                tenant = name
        if not tenant:
            raise ApiError(
                401,
                "an API key of this server is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return tenant

    def _check_body(self) -> None:
        """A page can make a browser post plain text and URL-encoded forms anywhere without asking first."""
        coming = b"transfer-encoding" in self.headers or self._declared()
        if self.scope["method"] != "POST" and not coming:
            return
        kind = self.headers.get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() not in BODIES:
            raise ApiError(
                415,
                f"Content-Type must be {' or '.join(sorted(BODIES))}",
                code="unsupported_media_type",
            )
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "bodies must be sent without Content-Encoding")

    def _declared(self) -> int | None:
        """Bytes that the body is said to have."""
        said = self.headers.get(b"content-length")
        if said is None or b"transfer-encoding" in self.headers:
            return None
        if not said.isdigit() or len(said) > 18:
            raise ApiError(400, "Content-Length must be a number of bytes")
        return int(said)

    async def receive(self) -> Message:
        """What the app reads: the body that has come, then nothing until the client has gone."""
        assert self.body is not None
        if self.body.pieces:
            if len(self.body.pieces) == 1 and self.body.bytes > LARGE:
                await self.guard.bodies.turn()
            piece = self.body.pieces.popleft()
            return {"type": "http.request", "body": piece, "more_body": bool(self.body.pieces)}
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.ended:
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [
                (n, v) for n, v in message.get("headers", ()) if n.lower() != b"x-request-id"
            ]
            named = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY if name not in named]
            headers += [*self.cors, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
            if self.body:
                self.body.free()
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.ended = True

    async def _fail(self, error: ApiError) -> None:
        """Answers with an error. Where an answer has begun already, returning without its end closes the connection."""
        if self.status is None:
            status, headers, body = envelope(error, self.id)
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})


class Bodies:
    """All bodies in memory, from their first byte until their answer begins (the app has read and checked them then).

    When they are too many bytes together, the largest one that is still on its way gives way.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bytes = 0
        self.coming: set[Body] = set()
        self._turn = asyncio.Lock()
        self._free = 0.0  # when the next large body may be read

    async def read(self, declared: int | None, receive: Receive) -> "Body | None":
        """The body, or None if the client went away first. Raises ApiError if it is too large, too slow or not as long
        as declared, or if there is no room."""
        cap, body = self.settings.max_body_bytes, Body(self)
        if declared is not None and declared > cap:
            raise ApiError(413, f"a body must have at most {cap} bytes, found {declared}")
        self.coming.add(body)
        try:
            async with asyncio.timeout(self.settings.body_seconds) as body.clock:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        body.free()
                        return None
                    if body.crowded_out:
                        raise no_room()
                    body.add(message.get("body", b""))
                    more = message.get("more_body", False)
                    if body.bytes > cap:
                        raise ApiError(413, f"a body must have at most {cap} bytes, found more")
                    if declared is not None and (body.bytes > declared or not more):
                        _check_length(declared, body.bytes)
                    if self.bytes > self.settings.max_bodies_bytes:
                        self._make_room(body)
        except BaseException as error:
            body.free()
            if not isinstance(error, TimeoutError):
                raise
            if body.crowded_out:
                raise no_room() from None
            seconds = self.settings.body_seconds
            raise ApiError(
                408, f"the body must come within {seconds:g} s", headers={"Connection": "close"}
            ) from None
        finally:
            self.coming.discard(body)
        return body

    async def turn(self) -> None:
        """Returns when a large body may be read, which whoever awaits this must do at once: its app parses and checks
        it without a pause, in the thread that serves everybody. However many come, that thread spends at most one
        part in 1 + REST on them."""
        loop = asyncio.get_running_loop()
        await self._turn.acquire()
        try:
            await asyncio.sleep(self._free - loop.time())
        except BaseException:
            self._turn.release()
            raise
        loop.call_soon(self._read, loop.time())  # runs when the body has been read

    def _read(self, began: float) -> None:
        now = asyncio.get_running_loop().time()
        self._free = now + REST * (now - began)
        self._turn.release()

    def _make_room(self, newest: "Body") -> None:
        while self.bytes > self.settings.max_bodies_bytes:
            largest = max(self.coming, key=lambda body: body.bytes)
            if largest is newest:
                raise no_room()
            assert largest.clock is not None
            largest.crowded_out = True
            largest.free()
            largest.clock.reschedule(asyncio.get_running_loop().time())


class Body:
    """The bytes of one request as they came."""

    def __init__(self, all_of_them: Bodies) -> None:
        self._all = all_of_them
        self.bytes = 0
        self.pieces: deque[bytes] = deque()
        self.clock: asyncio.Timeout | None = None
        self.crowded_out = False

    def add(self, piece: bytes) -> None:
        if piece or not self.pieces:  # the app hears of an empty body too
            self.pieces.append(piece)
        self.bytes += len(piece)
        self._all.bytes += len(piece)

    def free(self) -> None:
        """It counts no more; what the app hasn't read of it is gone."""
        self._all.bytes -= self.bytes
        self.bytes = 0
        self.pieces.clear()


def too_long_a_head(cap: int) -> ApiError:
    message = f"the head of a request must have at most {cap} bytes, found more"
    return ApiError(431, message, headers={"Connection": "close"})


def no_room() -> ApiError:
    return ApiError(
        503, "the server is receiving as much as it can; come again", headers={"Retry-After": "1"}
    )


def _check_length(declared: int, found: int) -> None:
    if found != declared:
        raise ApiError(
            400,
            f"the body must have the {declared} bytes that Content-Length says, found {found}",
            headers={"Connection": "close"},
        )


def _digest(key: bytes, secret: bytes = b"") -> bytes:
    return hashlib.blake2b(key, key=secret, digest_size=32).digest()


def _authority(host: bytes, scheme: bytes) -> tuple[str, str]:
    """The name and port of a Host header that was checked, or of a target like it."""
    match = HOST.fullmatch(host.decode("latin-1").lower())
    assert match
    return _plain(match[1]), match[2] or PORTS[scheme]


def _plain(name: str) -> str:
    """A host's name in one of the ways to write it: no brackets, no root dot, addresses in short."""
    name = name.strip("[]").lower().removesuffix(".")
    return str(ipaddress.ip_address(name)) if _is_address(name) else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
