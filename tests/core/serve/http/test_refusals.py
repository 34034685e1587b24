"""What the server doesn't do is refused with a reason."""

from typing import Any

import pytest
from fixtures.servers import Running

import polyphi.serve.app  # noqa: F401 (all schemas)
from polyphi.serve.http import refusals
from polyphi.serve.http.fields import Fields


def schemas(parent: type[Fields] = Fields) -> list[type[Fields]]:
    return [parent, *(one for child in parent.__subclasses__() for one in schemas(child))]


def test_each_refused_field_has_its_reason_and_no_other_has() -> None:
    assert set().union(*(schema.refused for schema in schemas())) == set(refusals.FIELDS)


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("POST", "/v1/audio/speech", "no speech synthesis"),
        ("POST", "/v1/images/generations", "makes no images"),
        ("POST", "/v1/moderations", "moderates nothing"),
        ("POST", "/v1/rerank", "scores no pairs"),
        ("GET", "/v1/files/file-1/content", "stores no files"),
        ("GET", "/v1/chat/completions", "aren't stored"),
        ("GET", "/v1/chat/completions/chatcmpl-1", "aren't stored"),
        ("POST", "/v1/chat/completions/batch", "no batches"),
        ("POST", "/v1/responses/compact", "nothing is removed"),
        ("POST", "/v1/messages/batches", "no batches"),
        ("POST", "/v2/embed", "use /v1/embeddings"),
        ("POST", "/api/chat", "not Ollama's"),
        ("POST", "/chat/completions", "expected /v1/chat/completions"),
        ("POST", "/v1/v1/messages", "expected /v1/messages"),
        ("GET", "/nothing", "there is no route at this address"),
        ("GET", "/v1/embeddings", "doesn't accept GET"),
    ],
)
def test_a_route_that_is_not_served_says_why(
    running: Running, method: str, path: str, reason: str
) -> None:
    with running.client() as client:
        reply = client.request(method, path, json={} if method == "POST" else None)
    assert reply.status_code in (404, 405)
    error = reply.json()["error"]
    assert reason in error["message"] and error["code"] in ("not_found", "method_not_allowed")


HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        ("/v1/chat/completions", {**HI, "use_beam_search": True}, "no beam search"),
        ("/v1/chat/completions", {**HI, "prompt_logprobs": -1}, "at most those of 20"),
        ("/v1/chat/completions", {**HI, "logprob_token_ids": [5]}, "the likeliest tokens"),
        ("/v1/chat/completions", {**HI, "structural_tag": "{}"}, "use tools"),
        (
            "/v1/chat/completions",
            {**HI, "response_format": {"type": "structural_tag", "structures": []}},
            "use tools",
        ),
        ("/v1/responses", {"input": "hi", "background": True}, "use stream"),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "namespace"}]}, "no namespaces"),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "mcp"}]}, "one of type 'mcp'"),
        ("/v1/chat/completions", {}, "messages: this field is required"),
    ],
)
def test_a_field_that_is_refused_says_why(
    running: Running, path: str, fields: dict[str, Any], reason: str
) -> None:
    with running.client() as client:
        reply = client.post(path, json=fields)
    assert reply.status_code == 400 and reason in reply.json()["error"]["message"]
