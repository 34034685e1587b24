"""Checks of hosts, origins, keys, sizes and times (S19, S20, S21): through ASGI directly, and on sockets of uvicorn."""

import asyncio
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from polyphi.serve.admission.quotas import client_of
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.connection import Connections
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.guard import BLOCK, AccessGuard
from tests.fixtures.servers import until

PLAIN = Settings("phi")
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    tenant = request.state.tenant.hex()
    return JSONResponse({"bytes": len(body), "tenant": tenant, "id": request.state.request_id})


class Panic(BaseException):
    """Like the exception of pyo3 for a panic in Rust."""


async def breaks(request: Request) -> JSONResponse:
    kind = Panic if request.method == "POST" else RuntimeError
    raise kind("a secret at 0x7f00 in /usr/lib/secret.py")


async def complains(request: Request) -> JSONResponse:
    raise ApiError(404, "no such thing", code="nothing", headers={"Retry-After": "3"})


async def breaks_late(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        yield b"the beginning"
        raise RuntimeError("a secret")

    return StreamingResponse(pieces())


async def floods(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("page", headers={"content-security-policy": "default-src 'self'"})


async def slow(request: Request) -> PlainTextResponse:
    if connection := getattr(request.state, "connection", None):
        connection.admitted = True
    await asyncio.sleep(1.0)
    return PlainTextResponse("slow")


async def drips(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        yield b"slow"
        await asyncio.sleep(0.5)
        yield b"slow"

    return StreamingResponse(pieces(), headers={"content-length": "8"})


ROUTES = [
    Route("/", page),
    Route("/health", page),
    Route("/ready", page),
    Route("/live", page),
    Route(CHAT, echo, methods=["GET", "POST", "OPTIONS"]),
    Route("/v1/models", page),
    Route("/metrics", page),
    Route("/openapi.json", page),
    Route("/breaks", breaks, methods=["GET", "POST"]),
    Route("/breaks-late", breaks_late),
    Route("/complains", complains),
    Route("/drips", drips),
    Route("/floods", floods),
    Route("/slow", slow),
]


def app(settings: Settings) -> Starlette:
    application = Starlette(routes=ROUTES)
    application.add_middleware(AccessGuard, settings=settings)
    return application


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        fields = json.loads(self.body)["error"]
        assert set(fields) == {"message", "type", "param", "code"}
        return fields


def ask(
    settings: Settings = PLAIN,
    path: str = CHAT,
    method: str = "GET",
    headers: Mapping[str, str] | list[tuple[str, str]] = (),
    body: bytes | list[bytes] = b"",
    host: str | None = "localhost:8000",
    guarded: Any = None,
) -> Answer:
    """The response to a request in the form that the parser returns."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    pairs += [("host", host)] if host is not None else []
    raw = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in pairs]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": raw,
        "state": {},
    }
    pieces = [body] if isinstance(body, bytes) else list(body)
    coming = [
        {"type": "http.request", "body": p, "more_body": i + 1 < len(pieces)}
        for i, p in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run((guarded or app(settings))(scope, receive, send))
    assert sent[0]["type"] == "http.response.start"
    names = [n.decode().lower() for n, _ in sent[0]["headers"]]
    once = [n for n in names if n != "vary"]
    assert len(once) == len(set(once))
    received = {n.decode().lower(): v.decode("latin-1") for n, v in sent[0]["headers"]}
    return Answer(sent[0]["status"], received, b"".join(m.get("body", b"") for m in sent[1:]))


def post(
    settings: Settings = PLAIN, headers: Mapping[str, str] | None = None, **more: Any
) -> Answer:
    body = more.get("body", b"{}")
    size = len(body) if isinstance(body, bytes) else sum(map(len, body))
    sent = {**JSON, "content-length": str(size), **(headers or {})}
    return ask(settings, method="POST", headers=sent, **{"body": b"{}", **more})


# S21: names and pages


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "localhost.:80", "127.0.0.1:8000", "[::1]", "[0:0::1]:8000"],
)
def test_s21_own_names_are_answered(host: str) -> None:
    assert ask(host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "192.168.0.7",
        "localhost:8000@evil.example",
        "localhost, evil.example",
        "localhost:99999999",
        "localhost/",
        "[::1",
        "::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "2130706433",
        "localhost\xe9",
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", CHAT, "/nowhere"])
def test_s21_a_rebound_name_is_refused(host: str | None, path: str) -> None:
    answer = ask(path=path, host=host)
    assert answer.status == 403
    assert answer.error["code"] == "host_not_allowed" and "--allow-host" in answer.error["message"]
    assert "evil" not in answer.body.decode()


def test_s21_two_host_headers_are_refused() -> None:
    assert ask(headers=[("host", "evil.example")]).status == 400


def test_s21_names_given_are_answered_and_those_only() -> None:
    settings = replace(PLAIN, hosts=("Chat.Example.org", "fd00::7"))
    assert ask(settings, host="chat.example.org:8443").status == 200
    assert ask(settings, host="[FD00:0::7]:80").status == 200
    assert ask(settings, host="localhost").status == 200
    assert ask(settings, host="www.chat.example.org").status == 403
    assert ask(replace(PLAIN, hosts=("*",)), host="anything.example").status == 200
    assert ask(replace(PLAIN, host="192.168.0.7"), host="192.168.0.7:8000").status == 200
    assert ask(replace(PLAIN, host="gpu.lan"), host="gpu.lan").status == 200


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", ""])
def test_s21_bound_to_all_addresses_any_of_them_is_answered_but_no_name(bound: str) -> None:
    everywhere = replace(PLAIN, host=bound)
    assert ask(everywhere, host="192.168.0.7:8000").status == 200
    assert ask(everywhere, host="[fe80::1]:8000").status == 200
    answer = ask(everywhere, host="evil.example")
    assert answer.status == 403 and "IP address" in answer.error["message"]
    assert ask(replace(everywhere, hosts=("gpu.lan",)), host="192.168.0.7").status == 403
    assert ask(replace(everywhere, hosts=("gpu.lan",)), host="gpu.lan").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost",
        "http://localhost:8001",
        "file://",
        "",
        "localhost:8000",
        "http://localhost:8000.evil.example",
        "chrome-extension://abcdef",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_s21_pages_of_other_origins_are_refused(origin: str, method: str) -> None:
    preflight = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
    answer = ask(method=method, headers={"origin": origin, **JSON, **preflight})
    assert answer.status == 403 and answer.error["code"] == "origin_not_allowed"
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_s21_the_own_page_may_ask_and_gets_no_cors() -> None:
    for origin, host in (
        ("http://localhost:8000", "localhost:8000"),
        ("http://LOCALHOST", "localhost:80"),
        ("https://localhost", "localhost"),
        ("https://localhost:443", "localhost"),
        ("http://[::1]:8000", "[::1]:8000"),
    ):
        answer = post(headers={"origin": origin}, host=host)
        assert answer.status == 200, (origin, host)
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_s21_a_page_that_was_allowed_may_ask_from_elsewhere() -> None:
    allowed = replace(PLAIN, origins=("https://Chat.Example.org/",), keys=("k",))
    origin = {"origin": "https://chat.example.org"}
    requested = "authorization, content-type, x-stainless-os"
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": requested,
    }
    answer = ask(allowed, method="OPTIONS", headers={**origin, **preflight})
    assert answer.status == 204 and answer.body == b""
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    assert answer.headers["access-control-allow-headers"] == requested
    assert answer.headers["vary"] == "Origin"
    answer = post(allowed, {**origin, "authorization": "Bearer k"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    answer = post(allowed, origin)  # the page may read what was wrong
    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert post(allowed, {"origin": "https://evil.example"}).status == 403
    strange = {**preflight, "access-control-request-headers": "a\x01, <b>"}
    answer = ask(allowed, method="OPTIONS", headers={**origin, **strange})
    assert answer.headers["access-control-allow-headers"] == ""


def test_s21_any_origin_is_allowed_only_if_configured() -> None:
    answer = post(replace(PLAIN, origins=("*",)), {"origin": "https://any.example"})
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "*"


def test_s21_credentials_are_never_allowed() -> None:
    for origins in ((), ("*",), ("https://a.example",)):
        for method in ("GET", "POST", "OPTIONS"):
            headers = {
                "origin": "https://a.example",
                "access-control-request-method": "POST",
                **JSON,
            }
            answer = ask(replace(PLAIN, origins=origins), method=method, headers=headers)
            assert "access-control-allow-credentials" not in answer.headers


def test_s21_a_preflight_of_the_own_page_allows_nothing_more() -> None:
    headers = {"origin": "http://localhost:8000", "access-control-request-method": "POST"}
    answer = ask(method="OPTIONS", headers=headers)
    assert answer.status == 204
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "text/plain; application/json",
        "application/json-seq",
        "application/octet-stream",
    ],
)
def test_s21_a_simple_form_of_another_page_is_refused(kind: str) -> None:
    answer = post(headers={"content-type": kind})
    assert answer.status == 415 and "application/json" in answer.error["message"]


@pytest.mark.parametrize(
    "kind",
    ["Application/JSON", "application/json ;charset=utf-8", "multipart/form-data; boundary=a"],
)
def test_bodies_of_both_kinds_pass(kind: str) -> None:
    answer = post(headers={"content-type": kind}, body=b'{"a": 1}')
    assert answer.status == 200 and json.loads(answer.body)["bytes"] == 8


def test_compressed_bodies_are_refused() -> None:
    assert post(headers={"content-encoding": "gzip"}).status == 415
    assert post(headers={"content-encoding": "identity"}).status == 200


@pytest.mark.parametrize("origin", ["example.org", "http://", "http://a/path", "http://a b"])
def test_an_origin_that_can_never_match_is_rejected_at_the_start(origin: str) -> None:
    with pytest.raises(ValueError, match="expected an origin"):
        AccessGuard(app(PLAIN), replace(PLAIN, origins=(origin,)))


@pytest.mark.parametrize("host", ["http://example.org", "example.org:80", "a b", ""])
def test_a_host_that_can_never_match_is_rejected_at_the_start(host: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        AccessGuard(app(PLAIN), replace(PLAIN, hosts=(host,)))


# S20: keys

KEYED = replace(PLAIN, keys=("first-key", "schlüssel-é", "last-key"))
PATHS = sorted(
    {route.path for route in ROUTES} - {"/", "/live", "/health", "/ready"}
    | {
        "/nowhere",
        "/docs",
        "/HEALTH",
        "/Health",
        "/health/",
        "/health//",
        "//health",
        "//",
        "/./health",
        "/v1/../health",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "/health;x",
        "/health\x00",
        "/health\n",
        "/health ",
        "/ready/v1/models",
        "/v1//models",
        "/V1/MODELS",
        "/v1/models/",
        "/%2e/health",
        "*",
        "",
        "health",
        "http://localhost/health",
    }
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "PROPFIND")


@pytest.mark.parametrize("method", METHODS)
def test_s20_every_path_and_method_needs_a_key(method: str) -> None:
    for path in PATHS:
        for credentials in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            answer = ask(KEYED, path, method, {**JSON, **credentials})
            assert answer.status == 401, (method, path, credentials)
            assert answer.error["code"] == "invalid_api_key"
            assert answer.error["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"


def test_s20_only_the_public_paths_are_read_without_a_key() -> None:
    for path in ("/", "/live", "/health", "/ready"):
        assert ask(KEYED, path).status == 200
        assert ask(KEYED, path, "HEAD").status == 200
        for method in METHODS[2:]:
            assert ask(KEYED, path, method, JSON).status == 401, (path, method)


@pytest.mark.parametrize("key", ["first-key", "last-key", "schlüssel-é"])
def test_s20_each_key_opens_by_either_header(key: str) -> None:
    raw = key.encode().decode("latin-1")  # as UTF-8 looks in a header
    for credentials in (
        {"authorization": f"Bearer {raw}"},
        {"authorization": f"bearer  {raw}"},
        {"x-api-key": raw},
        {"authorization": "Basic abc", "x-api-key": raw},
    ):
        assert ask(KEYED, headers=credentials).status == 200, credentials


@pytest.mark.parametrize(
    "credentials",
    [
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-keyy"},
        {"authorization": "Bearer FIRST-KEY"},
        {"authorization": "Bearer first-key,last-key"},
        {"authorization": "Bearer \xff\xfe"},
        {"authorization": "Bearer " + "é" * 5000},
        {"authorization": "Bearer wrong", "x-api-key": "first-key"},
        {"x-api-key": ""},
        {"cookie": "first-key"},
    ],
)
def test_s20_anything_else_does_not(credentials: dict[str, str]) -> None:
    assert ask(KEYED, headers=credentials).status == 401


def test_s20_two_keys_at_once_are_refused() -> None:
    pair = [("authorization", "Bearer wrong"), ("Authorization", "Bearer first-key")]
    assert ask(KEYED, headers=pair).status == 400


@pytest.mark.parametrize("key", ["first-key", "last-key", "wrong", ""])
def test_s20_all_keys_are_compared_in_constant_time(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same comparisons of the same lengths for every key."""
    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ask(KEYED, headers={"authorization": f"Bearer {key}"})
    assert seen == [(32, 32)] * 3


def test_s24_tenants_differ_and_do_not_tell_their_key() -> None:
    guarded, other = app(KEYED), app(KEYED)

    def tenant(key: str, of: Any = guarded) -> str:
        answer = ask(headers={"authorization": f"Bearer {key}"}, guarded=of)
        return json.loads(answer.body)["tenant"]

    assert tenant("first-key") == tenant("first-key") != tenant("last-key")
    assert tenant("first-key") != tenant(
        "first-key", other
    )  # a guessed key can't be checked elsewhere
    assert json.loads(ask().body)["tenant"] == ""


@pytest.mark.parametrize("key", ["", " ", "a ", "\n", "one two", "one\ttwo"])
def test_an_empty_key_or_one_with_blanks_is_rejected_at_the_start(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        AccessGuard(app(PLAIN), replace(PLAIN, keys=("good", key)))


# S19: sizes and time

SMALL = replace(
    PLAIN,
    max_header_bytes=2000,
    max_body_bytes=1000,
    max_requests_bytes=3000,
    header_seconds=0.4,
    body_seconds=0.4,
    max_connections=4,
)


def test_s19_a_big_head_is_refused() -> None:
    assert ask(SMALL, headers={"x-a": "a" * 1500}).status == 200
    assert ask(SMALL, headers={"x-a": "a" * 2000}).status == 431
    assert ask(SMALL, headers={f"x-{i}": "" for i in range(400)}).status == 431
    answer = ask(SMALL, "/" + "a" * 3000)
    assert answer.status == 431 and "2000 bytes" in answer.error["message"]


def test_s19_a_big_body_is_refused_before_it_is_read() -> None:
    guarded = app(SMALL)
    assert post(SMALL, body=b"x" * 1000).status == 200
    answer = post(SMALL, {"content-length": "1001"}, guarded=guarded, body=b"")
    assert answer.status == 413 and "1000 bytes" in answer.error["message"]
    chunked = {**JSON, "transfer-encoding": "chunked"}
    assert ask(SMALL, method="POST", headers=chunked, body=[b"x" * 300] * 3).status == 200
    answer = ask(SMALL, method="POST", headers=chunked, body=[b"x" * 300] * 40)
    assert answer.status == 413 and "1000 bytes" in answer.error["message"]


@pytest.mark.parametrize(
    "length", ["-1", "+2", "2.0", "0x2", "1e1", " 2", "2 2", "٢", "9" * 5000, ""]
)
def test_s19_a_length_that_is_no_number_is_refused(length: str) -> None:
    sent = {**JSON, "content-length": length.encode().decode("latin-1")}
    assert ask(replace(SMALL, max_header_bytes=9000), method="POST", headers=sent).status == 400


@pytest.mark.parametrize("length", ["1", "3", "999"])
def test_s19_a_length_that_is_not_true_is_refused(length: str) -> None:
    answer = post(SMALL, {"content-length": length}, body=b"{}")
    assert answer.status == 400 and length in answer.error["message"]
    assert post(SMALL, {"content-length": length}, body=[b"{", b"}"]).status == 400


def test_s19_other_methods_have_the_same_caps() -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        sent = {**JSON, "content-length": "1001"}
        assert ask(SMALL, "/nowhere", method, sent).status == 413
        assert ask(SMALL, "/nowhere", method, {"content-length": "2"}, b"{}").status == 415


def test_bodies_of_any_size_reach_the_app() -> None:
    assert json.loads(ask().body)["bytes"] == 0
    assert json.loads(post(body=b"").body)["bytes"] == 0
    assert json.loads(post(body=[b"", b"{", b"", b"}"]).body)["bytes"] == 2
    pieces = [b"x" * size for size in (BLOCK - 1, 3, BLOCK, 5)]
    assert json.loads(post(body=pieces).body)["bytes"] == 2 * BLOCK + 7


def test_a_client_that_leaves_gets_nothing_and_costs_nothing() -> None:
    guard = AccessGuard(app(PLAIN), SMALL)
    sent: list[Any] = []

    async def leave() -> None:
        coming = iter([{"type": "http.request", "body": b"x" * 500, "more_body": True}])
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }

        async def receive() -> Any:
            return next(coming, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        await guard(scope, receive, send)

    asyncio.run(leave())
    assert sent == [] and guard.bytes.used == 0


# Answers


def test_every_answer_has_the_headers_of_a_careful_server() -> None:
    for answer in (ask(), ask(host="evil"), ask(KEYED), ask(path="/nowhere"), ask(path="/breaks")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
    assert ask(path="/").headers["content-security-policy"] == "default-src 'self'"


def test_a_request_keeps_its_id_if_it_is_harmless() -> None:
    assert ask(headers={"x-request-id": "my-id_1.2"}).headers["x-request-id"] == "my-id_1.2"
    for request_id in ("", "a b", "a" * 65, "<script>", "a\nb", "é"):
        answer = ask(headers={"x-request-id": request_id})
        assert answer.headers["x-request-id"].startswith("req-")
        assert json.loads(answer.body)["id"] == answer.headers["x-request-id"]
    assert ask().headers["x-request-id"] != ask().headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_s9_an_internal_error_is_logged_and_not_sent_to_the_client(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(path="/breaks", method=method, headers=JSON)
    assert answer.status == 500 and answer.error["type"] == "server_error"
    assert answer.headers["x-request-id"] in answer.error["message"]
    for secret in ("secret", "0x", "/usr", "Traceback", "RuntimeError"):
        assert secret not in answer.body.decode()
    assert "a secret at" in caplog.text and answer.headers["x-request-id"] in caplog.text


def test_an_error_of_the_app_has_the_shape_of_all_errors() -> None:
    answer = ask(path="/complains")
    assert answer.status == 404 and answer.error["code"] == "nothing"
    assert answer.headers["retry-after"] == "3"


def test_an_app_that_says_nothing_is_an_error() -> None:
    async def mute(scope: Any, receive: Any, send: Any) -> None: ...

    assert ask(guarded=AccessGuard(mute, PLAIN)).status == 500


def test_what_breaks_in_mid_answer_ends_without_an_end() -> None:
    sent: list[Any] = []

    async def watch() -> None:
        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        async def begins(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError("a secret")

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        await AccessGuard(begins, PLAIN)(scope, receive, send)

    asyncio.run(watch())
    assert [m.get("body") for m in sent] == [None, b"half"]


def test_s25_the_access_log_has_no_query_header_or_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polyphi.serve.access")
    answer = post(headers={"authorization": "Bearer sesame"}, body=b'{"prompt": "sesame"}')
    records = [r for r in caplog.records if r.name == "polyphi.serve.access"]
    assert len(records) == 1 and "sesame" not in caplog.text
    line = records[0].getMessage()
    assert line.startswith(f"POST {CHAT} 200 ") and line.endswith(answer.headers["x-request-id"])
    assert ask(path="/a\r\nforged line").status == 404
    assert caplog.records[-1].getMessage().startswith("GET /a%0D%0Aforged%20line 404 ")


def test_s21_a_websocket_of_another_page_is_refused() -> None:
    sent: list[Any] = []

    async def dial() -> None:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        sent_headers = [(b"host", b"localhost"), (b"origin", b"http://evil.example")]
        scope = {"type": "websocket", "path": "/", "headers": sent_headers}
        await AccessGuard(app(PLAIN), PLAIN)(scope, receive, send)

    asyncio.run(dial())
    assert sent == [{"type": "websocket.close", "code": 1008}]


# On sockets


class Served:
    """A real uvicorn in a thread, with short limits."""

    def __init__(self, settings: Settings, keep_alive: int = 2) -> None:
        self.app = app(settings)
        config = uvicorn.Config(
            self.app,
            port=0,
            http=Connections(settings).protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            log_level="error",
            timeout_keep_alive=keep_alive,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def dial(self, data: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
        """A connection from one of this machine's addresses."""
        self.dialed = time.monotonic()
        server = "127.0.0.1", self.port
        connection = socket.create_connection(server, timeout=60, source_address=(address, 0))
        connection.sendall(data)
        return connection

    def alive(self) -> bool:
        with self.dial(
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        ) as s:
            return read_all(s).endswith(b"page")

    @property
    def memory(self) -> Any:
        layer = self.app.middleware_stack
        while not isinstance(layer, AccessGuard):
            layer = layer.app  # type: ignore[union-attr]
        return layer.bytes


def read_all(peer: socket.socket) -> bytes:
    """All bytes until the other side disconnects."""
    parts = []
    try:
        while part := peer.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answers(peer: socket.socket, count: int = 1) -> bytes:
    """The bytes until a number of small responses are complete."""
    got = b""
    while got.count(b"HTTP/1.1 ") < count or not got.endswith((b"}", b"page", b"slow")):
        part = peer.recv(65536)
        assert part, got
        got += part
    return got


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(SMALL)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def patient() -> Iterator[Served]:
    """A server whose clocks don't run out in a test."""
    server = Served(replace(SMALL, header_seconds=600.0, body_seconds=600.0))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _still_alive(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        assert request.getfixturevalue("served").alive()


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
)
GET = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


SOON = 20.0
"""Seconds in which a clock of 0.4 s ends a connection, on a slow or busy machine too."""


def ended_after(peer: socket.socket, start: float) -> tuple[bytes, float]:
    """All bytes until the server disconnects, and the seconds from `start` until then."""
    return read_all(peer), time.monotonic() - start


def ends_while_sending(peer: socket.socket, data: bytes) -> bool:
    """Whether the server disconnects soon although the data come again and again."""
    end = time.monotonic() + SOON
    with suppress(ConnectionError):
        while time.monotonic() < end:
            peer.sendall(data)
            time.sleep(0.03)
        return False
    return True


@pytest.mark.parametrize("begin", [b"", b"GET / HT", GET[:-2], b"\r\n"])
def test_s19_a_head_that_does_not_come_ends_the_connection(served: Served, begin: bytes) -> None:
    with served.dial(begin) as peer:
        got, seconds = ended_after(peer, served.dialed)
    assert got == b"" and 0.2 < seconds < SOON


def test_s19_a_head_that_drips_ends_the_connection(served: Served) -> None:
    for drop in (b"x-a: a\r\n", b"\r\n"):
        with served.dial(b"" if drop == b"\r\n" else GET[:-2]) as peer:
            assert ends_while_sending(peer, drop)


def test_s19_the_second_head_of_a_connection_has_its_own_clock(served: Served) -> None:
    with served.dial(GET) as peer:
        assert answers(peer).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # longer than a head may take: nothing was begun
        peer.sendall(GET)
        assert answers(peer).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        peer.sendall(GET[:20])
        got, seconds = ended_after(peer, start)
        assert got == b"" and 0.2 < seconds < SOON


def test_s19_an_answer_that_takes_longer_than_a_head_is_given(served: Served) -> None:
    with served.dial(GET.replace(b"/v1/models", b"/slow")) as peer:
        assert answers(peer).endswith(b"slow")


def test_a_request_may_follow_the_headers_of_a_response_without_a_body(patient: Served) -> None:
    """A client has the whole response to HEAD with its headers, also where the application sends a body in parts."""
    with patient.dial(b"HEAD /drips HTTP/1.1\r\nhost: localhost\r\n\r\n") as peer:
        headers = b""
        while not headers.endswith(b"\r\n\r\n"):
            headers += peer.recv(1)
        assert headers.startswith(b"HTTP/1.1 200") and b"content-length: 8" in headers
        peer.sendall(GET)
        assert answers(peer).endswith(b"page")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a: " + b"a" * 5000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-a: a\r\n" * 600,
        b"GET /" + b"a" * 5000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a: " + b"a" * 5000 + b"\r\n\r\n",
    ],
)
def test_s19_a_head_without_end_is_refused(served: Served, head: bytes) -> None:
    with served.dial(head) as peer:
        got = read_all(peer)
    assert got.startswith(b"HTTP/1.1 431 ") and b"2000 bytes" in got and b"nosniff" in got


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx y: 1\r\n\r\n",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        HEAD + b"content-length: -1\r\n\r\n{}",
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n{}",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"ffffffffffffffffffff\r\n",
    ],
)
def test_s19_what_is_no_request_is_refused(served: Served, data: bytes) -> None:
    with served.dial(data) as peer:
        got = read_all(peer)
    assert got.startswith(b"HTTP/1.1 400 "), got
    assert set(json.loads(got.partition(b"\r\n\r\n")[2])) == {"error"}


def test_s19_a_body_that_does_not_arrive_gets_408(served: Served) -> None:
    for head in (HEAD + b"content-length: 10\r\n\r\n12345", CHUNKED + b"5\r\n12345\r\n"):
        with served.dial(head) as peer:
            got, seconds = ended_after(peer, served.dialed)
        assert got.startswith(b"HTTP/1.1 408 ") and b"0.4 s" in got and 0.2 < seconds < SOON
    assert served.memory.used == 0


def test_s19_a_connection_with_a_slow_body_is_closed(served: Served) -> None:
    with served.dial(HEAD + b"content-length: 900\r\n\r\n") as peer:
        assert ends_while_sending(peer, b" ")


def test_s19_the_rest_of_a_refused_body_is_not_awaited_for_ever(served: Served) -> None:
    with served.dial(HEAD + b"content-length: 100000\r\n\r\n") as peer:
        assert answers(peer).startswith(b"HTTP/1.1 413")
        assert ends_while_sending(peer, b" ")


def test_s19_after_the_rest_of_a_refused_body_the_connection_is_good_again(
    served: Served,
) -> None:
    with served.dial(HEAD + b"content-length: 5000\r\n\r\n") as peer:
        assert answers(peer).startswith(b"HTTP/1.1 413")
        peer.sendall(b" " * 5000)
        time.sleep(0.6)
        peer.sendall(GET)
        assert answers(peer).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "rest",
    [
        b"1\r\n \r\n" * 2000,  # one byte to a chunk
        b"1;" + b"x" * 5000,  # an extension without end
        b"2\r\n{}\r\n0\r\nx-trailer: " + b"x" * 5000,  # trailers without end
        b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 1000,
    ],
)
def test_s19_framing_without_end_is_refused(patient: Served, rest: bytes) -> None:
    """Because of its form: no clock of this server runs out before the client's."""
    with patient.dial(CHUNKED) as peer:
        for at in range(0, len(rest), 1000):
            try:
                peer.sendall(rest[at : at + 1000])
            except ConnectionError:
                break
            time.sleep(0.01)
        got = read_all(peer)
    assert got.startswith(b"HTTP/1.1 4") or got == b""  # reset while it was still sending
    assert patient.memory.used == 0


def test_chunks_and_trailers_of_honest_clients_pass(served: Served) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (b"x" * 100,) * 8)
    with served.dial(CHUNKED + body + b"0\r\nhost: evil.example\r\nx-a: b\r\n\r\n") as peer:
        got = answers(peer)
    assert got.startswith(b"HTTP/1.1 200") and b'"bytes":800' in got


def test_bytes_that_arrive_one_by_one_are_the_same_requests() -> None:
    """A chunked body, a trailer, a rest of a refused body, an offer of HTTP/2: what is passed on is the same."""
    roomy = replace(SMALL, header_seconds=20.0, body_seconds=20.0)
    server = Served(roomy)
    offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    requests = [
        CHUNKED + b"3;a=b\r\n{} \r\n2\r\n  \r\n0\r\nx-a: b\r\n\r\n",
        HEAD + b"content-length: 1500\r\n\r\n" + b" " * 1500,
        HEAD + offer + b"content-length: 4\r\n\r\n{  }",
        b"GET http://localhost/v1/models HTTP/1.1\r\n\r\n",
    ]
    try:
        for size in (1, 7, 10_000):
            with server.dial() as peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for request, expected in zip(
                    requests, (b":5,", b" 413 ", b":4,", b"page"), strict=True
                ):
                    for at in range(0, len(request), size):
                        peer.sendall(request[at : at + size])
                    assert expected in answers(peer)
    finally:
        server.stop()


def test_a_connection_without_another_request_is_closed() -> None:
    """Not while the headers of another one arrive, which have their own time."""
    server = Served(replace(SMALL, header_seconds=1.5), keep_alive=1)
    try:
        with server.dial(GET) as peer:
            assert answers(peer).endswith(b"page")
            time.sleep(0.2)
            peer.sendall(GET[:9])
            time.sleep(0.8)
            peer.sendall(GET[9:])
            assert answers(peer).endswith(b"page")
            assert peer.recv(1) == b""
    finally:
        server.stop()


def test_a_method_of_another_protocol_is_refused(served: Served) -> None:
    with served.dial(b"DESCRIBE / RTSP/1.0\r\nhost: localhost\r\n\r\n") as peer:
        got = read_all(peer)
        assert got.startswith(b"HTTP/1.1 4"), got


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", b"192.0.2.7"),
        ("2001:db8:1:2:3::4", b"2001:db8:1:2::/64"),
        ("fe80::1%eth0", b"fe80::/64"),
        ("::ffff:192.0.2.7", b"192.0.2.7"),
        ("testclient", b"testclient"),
    ],
)
def test_a_client_without_a_key_is_an_address_or_a_network(address: str, client: bytes) -> None:
    """Also an IPv4 address on a socket of IPv6: otherwise all of them would be one network."""
    assert client_of(b"", address) == client
    assert client_of(b"a key's digest", address) == b"a key's digest"


def test_s19_a_request_sent_before_the_last_was_answered_is_not_read(served: Served) -> None:
    with served.dial(GET.replace(b"/v1/models", b"/slow") + GET * 1000) as peer:
        got = read_all(peer)
    assert got.count(b"HTTP/1.1 ") == 1 and got.endswith(b"slow")


def test_s19_more_than_the_length_says_is_no_second_request(served: Served) -> None:
    with served.dial(HEAD + b"content-length: 2\r\n\r\n{}{}{}") as peer:
        got = read_all(peer)
    assert got.startswith(b"HTTP/1.1 200") and got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_an_upgrade_is_answered_as_if_it_were_none(served: Served, upgrade: bytes) -> None:
    upgrades = b"connection: upgrade, http2-settings\r\nupgrade: " + upgrade + b"\r\n"
    with served.dial(HEAD + upgrades + b"content-length: 4\r\n\r\n{ ") as peer:
        time.sleep(0.1)
        peer.sendall(b" }" + GET[:-2] + upgrades + b"\r\n")
        got = read_all(peer)
    assert got.startswith(b"HTTP/1.1 200") and b'"bytes":4' in got
    with served.dial() as peer:
        for _ in range(2):
            peer.sendall(GET[:-2] + upgrades + b"\r\n")
            assert answers(peer).endswith(b"page")
    with served.dial(b"GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n") as peer:
        peer.sendall(upgrades + b"\r\n")
        assert answers(peer).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/v1/models", "localhost", 200),
        ("HTTP://LOCALHOST:80/v1/models?a=b", "localhost", 200),
        ("http://localhost", "localhost", 200),
        ("http://localhost?a=b", "localhost", 200),
        ("https://localhost:443/v1/models", "localhost", 200),
        ("http://[::1]:8000/v1/models", "[0:0::1]:8000", 200),
        ("http://localhost:8000/v1/models", None, 200),
        ("http://evil.example/health", "localhost", 403),
        ("http://evil.example/health", "evil.example", 403),
        ("http://evil.example/health", None, 403),
        ("http://evil.example", "localhost", 403),
        ("http://localhost/health", "evil.example", 403),
        ("http://localhost@evil.example/health", "localhost", 403),
        ("http://evil.example@localhost/health", "localhost", 403),
        ("http://localhost:8001/health", "localhost:8000", 400),
        ("http://localhost/health", "localhost:8000", 400),
        ("http://127.0.0.1/health", "localhost", 400),
        ("ftp://localhost/health", "localhost", 400),
        ("http:///health", "localhost", 403),
    ],
)
def test_s21_a_name_in_the_target_is_checked_as_the_host_is(
    served: Served, target: str, host: str | None, status: int
) -> None:
    """Clients send such targets to a proxy: `GET http://name/path`. The name there takes precedence over the header."""
    named = f"host: {host}\r\n" if host else ""
    with served.dial(f"GET {target} HTTP/1.1\r\n{named}connection: close\r\n\r\n".encode()) as peer:
        got = read_all(peer)
    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got
    assert got.endswith(b"page") if status == 200 else b"x-request-id" in got
    assert b"evil" not in got


def test_100_continue_is_sent_only_for_a_body_within_the_limit(served: Served) -> None:
    expect = b"expect: 100-continue\r\n"
    with served.dial(HEAD + expect + b"content-length: 2\r\n\r\n") as peer:
        assert peer.recv(100).startswith(b"HTTP/1.1 100 Continue")
        peer.sendall(b"{}")
        assert b'"bytes":2' in answers(peer)
    with served.dial(HEAD + expect + b"content-length: 2000\r\n\r\n") as peer:
        assert answers(peer).startswith(b"HTTP/1.1 413")


def test_s19_an_unread_answer_is_aborted(served: Served) -> None:
    with served.dial(GET.replace(b"/v1/models", b"/floods")) as peer:
        peer.recv(1000)
        until(lambda: not served.server.server_state.tasks)
        assert not served.server.server_state.connections


def test_what_breaks_in_mid_answer_closes_the_connection(served: Served) -> None:
    with served.dial(GET.replace(b"/v1/models", b"/breaks-late")) as peer:
        got = read_all(peer)
    assert b"the beginning" in got and b"secret" not in got and not got.endswith(b"0\r\n\r\n")


def test_s19_idle_connections_give_way_to_requests(served: Served) -> None:
    """Idle connections that use up the limit are closed, oldest first, and block no other client."""
    idlers = [served.dial(b"GET / HT") for _ in range(4)]
    receiving = served.dial(HEAD + b"content-length: 10\r\n\r\n")
    for _ in range(10):
        assert served.alive()
    for peer in [*idlers, receiving]:
        peer.close()


def test_s19_requests_being_answered_keep_their_places(served: Served) -> None:
    """Where all connections have admitted requests, a new one is served for probes alone, also of a busy address."""
    slow = GET.replace(b"/v1/models", b"/slow")
    busy = [served.dial(slow, f"127.0.0.{1 + n % 2}") for n in range(4)]
    until(lambda: len(served.server.server_state.tasks) == 4)
    for address in ("127.0.0.1", "127.0.0.3"):
        with served.dial(GET, address) as peer:
            got = answers(peer)
        assert got.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in got
        with served.dial(GET.replace(b"/v1/models", b"/health"), address) as peer:
            assert answers(peer).endswith(b"page")
    for peer in busy:
        assert answers(peer).endswith(b"slow")
        peer.close()


def test_s19_bodies_that_wait_of_two_addresses_leave_connections_to_a_third(
    served: Served,
) -> None:
    """Each new connection of the busy addresses takes the place of one of their own."""
    with served.dial(address="127.0.0.3") as third:
        waiting = []
        for number in range(12):
            body = HEAD + b"content-length: 300\r\n\r\n" + b" " * 299
            waiting.append(served.dial(body, f"127.0.0.{1 + number % 2}"))
            third.sendall(GET)
            assert answers(third).startswith(b"HTTP/1.1 200")
            with served.dial(GET.replace(b"/v1/models", b"/health"), "127.0.0.4") as probe:
                assert answers(probe).endswith(b"page")
        for peer in waiting:
            peer.close()


def test_s19_idle_connections_of_one_address_leave_those_of_others(served: Served) -> None:
    """An address that opens more connections than its share loses its own, also where others are older."""
    with served.dial(address="127.0.0.2") as other:
        idlers = [served.dial(b"GET / HT") for _ in range(9)]
        other.sendall(GET)
        assert answers(other).startswith(b"HTTP/1.1 200")
        for peer in idlers:
            peer.close()


ROOMY = replace(SMALL, max_connections=50, body_seconds=60.0, max_requests_bytes=8000)
OTHER = "127.0.0.2"


def test_s19_bodies_of_clients_leave_memory_to_others() -> None:
    """A client that has several bodies gets three quarters of what the others leave; one body is always received."""
    server = Served(ROOMY)
    assert server.alive()
    length, start = b"content-length: 1000\r\n\r\n", b" " * 900
    started = []
    for number in range(1, 7):
        started.append(server.dial(HEAD + length + start))
        until(lambda n=number: server.memory.used == 900 * n)  # type: ignore[misc]
    with server.dial(HEAD + length + start) as peer:
        got = answers(peer)
    assert got.startswith(b"HTTP/1.1 429 ") and b"retry-after" in got and b"6,000 bytes" in got
    with server.dial(HEAD + length + b" " * 1000, OTHER) as peer:
        assert answers(peer).startswith(b"HTTP/1.1 200")
    started += [server.dial(HEAD + length + start, f"127.0.0.{n}") for n in (3, 4)]
    until(lambda: server.memory.used == 7200)
    small = b"content-length: 30\r\n\r\n"
    with server.dial(HEAD + length + start, OTHER) as peer:
        got = answers(peer)
    assert got.startswith(b"HTTP/1.1 503 ") and b"retry-after" in got
    with server.dial(HEAD + small + b" " * 30, OTHER) as peer:
        assert answers(peer).startswith(b"HTTP/1.1 200")
    for number, peer in reversed(list(enumerate(started))):
        peer.sendall(b" " * 100)
        got = answers(peer)
        assert got.startswith(b"HTTP/1.1 200") or (number < 6 and b" 429 " in got), got
        peer.close()
    server.stop()
    assert server.memory.used == 0
