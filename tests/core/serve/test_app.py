"""The responses match /openapi.json."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.quotas import Pool
from polyphi.serve.admission.settings import Settings
from polyphi.serve.app import create_app
from polyphi.serve.http.errors import AnthropicErrorResponse, ErrorResponse
from polyphi.serve.page import page
from tests.core.serve.dialects import DIALECTS
from tests.fixtures.servers import Running, request_of, serving

HI = [{"role": "user", "content": "hi"}]
KEY = {"authorization": "Bearer key"}
BODIES: dict[str, dict[str, Any]] = {
    dialect.path: {"json": dialect.write({"messages": HI, "max_tokens": 2})}
    for dialect in DIALECTS.values()
}
BODIES |= {
    "/v1/audio/transcriptions": {"files": {"file": b"RIFF\0\0\0\0WAVE"}},
    "/v1/audio/translations": {"files": {"file": b"RIFF\0\0\0\0WAVE"}},
    "/v1/responses/input_tokens": {"json": {"input": "hi"}},
    "/v1/messages/count_tokens": {"json": {"messages": HI}},
    "/tokenize": {"json": {"messages": HI}},
    "/detokenize": {"json": {"tokens": [1]}},
}
ADMITTED = [path for path in BODIES if path != "/detokenize"]
"""Routes whose requests are queued."""


@pytest.fixture
def keyed(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny", keys=("key",), max_body_bytes=5000)) as running:
        yield running


def promised(description: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    path = "/v1/models/{name}" if path.startswith("/v1/models/") else path
    return description["paths"][path][method.lower()]["responses"]


def schema_of(response: dict[str, Any]) -> str:
    return response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]


def wrong_requests(server: Any) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
    """(status, method, path, request) of requests that return errors."""
    for path in ("/v1/models", "/v1/models/tiny", "/props", "/version", "/metrics"):
        yield 401, "GET", path, {"headers": {"authorization": "Bearer wrong"}}
        yield 403, "GET", path, {"headers": {**KEY, "host": "evil.example"}}
    for path in ("/live", "/health", "/ready"):
        yield 403, "GET", path, {"headers": {"origin": "http://evil.example"}}
        yield 400, "GET", path, {"headers": [("authorization", "a"), ("authorization", "b")]}
    yield 404, "GET", "/v1/models/other", {"headers": KEY}
    for path, body in BODIES.items():
        yield 401, "POST", path, body
        yield 403, "POST", path, {**body, "headers": {**KEY, "host": "evil.example"}}
        yield 413, "POST", path, {"json": "x" * 6000, "headers": KEY}
        yield 415, "POST", path, {"content": b"x", "headers": {**KEY, "content-type": "text/plain"}}
        yield 400, "POST", path, {**body, "headers": [*KEY.items(), ("x-api-key", "a")] * 2}
        form = "data" if "files" in body else "json"
        unknown = {**body, form: {**body.get(form, {}), "nothing": "x"}}
        yield 400, "POST", path, {**unknown, "headers": KEY}
        other = {**body, form: {**body.get(form, {}), "model": "other"}}
        yield 404, "POST", path, {**other, "headers": KEY}
    image = {"type": "image_url", "image_url": {"url": "data:;base64,QUJD"}}
    message = {"role": "user", "content": [image]}
    for path in ("/v1/chat/completions", "/tokenize"):
        yield 415, "POST", path, {"json": {"messages": [message]}, "headers": KEY}
    # Otherwise a client without another request would have a place.
    server.quotas.requests = Pool("requests", server.capacity)
    with ExitStack() as stack:
        for number in range(server.capacity):
            stack.enter_context(server.admit(request_of(server, bytes([number]))))
        for path in ADMITTED:
            yield 429, "POST", path, {**BODIES[path], "headers": KEY}
    server.draining = True
    for path in ADMITTED:
        yield 503, "POST", path, {**BODIES[path], "headers": KEY}


def test_errors_that_come_are_promised_with_their_schema(keyed: Running) -> None:
    server = keyed.server
    seen = set()
    with keyed.client() as client:
        description = client.get("/openapi.json", headers=KEY).json()
        for status, method, path, request in wrong_requests(server):
            answer = client.request(method, path, **request)
            assert answer.status_code == status, (method, path, answer.text)
            error_type = (
                AnthropicErrorResponse if path.startswith("/v1/messages") else ErrorResponse
            )
            assert answer.json().keys() == error_type.model_fields.keys()
            error_type.model_validate_json(answer.content, strict=True)
            assert status != 429 or int(answer.headers["retry-after"]) >= 1
            response = promised(description, method, path).get(str(status))
            assert response is not None, f"{method} {path} doesn't promise {status}"
            assert schema_of(response) == error_type.__name__ and response["description"]
            seen.add(status)
    assert seen == {400, 401, 403, 404, 413, 415, 429, 503}


def test_health_is_promised_as_it_comes(keyed: Running) -> None:
    server = keyed.server
    with keyed.client() as client:
        description = client.get("/openapi.json", headers=KEY).json()
        server.draining = True
        answer = client.get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    for path in ("/health", "/ready"):
        for status in ("200", "503"):
            assert schema_of(promised(description, "GET", path)[status]) == "Health"


def test_nothing_is_promised_that_never_comes(engine: Engine) -> None:
    """401 where no key is needed, 422, and codes of bodies where none is sent."""
    open_, keyed = (
        create_app(engine, Settings("tiny", keys=keys)).openapi() for keys in ((), ("key",))
    )
    for description in (open_, keyed):
        assert "HTTPValidationError" not in description["components"]["schemas"]
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                codes = set(operation["responses"])
                assert "422" not in codes
                assert method == "post" or not codes & {"413", "415", "429"}
                needs = description is keyed and path not in ("/live", "/health", "/ready")
                assert ("401" in codes) == needs, path
                named = path == "/v1/models/{name}" or path.startswith("/v1/responses/{id}")
                assert ("404" in codes) == (method == "post" or named)


def test_the_page_is_compressed_for_who_reads_gzip(running: Running) -> None:
    with running.client() as client:
        compressed = client.get("/", headers={"accept-encoding": "gzip"})
        plain = client.get("/", headers={"accept-encoding": "identity"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert compressed.content == plain.content == page.PAGE
    assert compressed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
