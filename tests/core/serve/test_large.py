"""Large requests and answers: they are refused before they use resources, and delay no other client."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request as HttpRequest

from polyphi.engine.engine import Engine
from polyphi.media import media
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.fields import Fields
from polyphi.serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampling,
    TokenizeRequest,
)
from tests.fixtures.chats import image_part
from tests.fixtures.servers import Running, posting, serving, until
from tests.fixtures.variants import few

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = "😀" * 3_900_000


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def test_texts_that_are_surely_too_long_are_refused_unread(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "encode_slices", refuse)
    half = {"type": "text", "text": "😀" * 1000}
    tools = [{"type": "function", "function": {"name": "f", "description": LONG[:100_000]}}]
    with running.client() as client:
        for path, body in (
            (CHAT, chat(LONG)),
            (CHAT, chat([half] * 5)),
            (CHAT, chat("hi", tools=tools)),
            (COMPLETIONS, {"prompt": LONG}),
            (COMPLETIONS, {"prompt": ["😀" * 1000, LONG]}),
            (COMPLETIONS, {"prompt": [1] * 100_000}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 400, answer.text[:300]
            error = answer.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert "at least" in error["message"] and "the context holds 2048" in error["message"]
            for phrase in ("prompt is too long", "this model's maximum context length is 2048"):
                assert phrase in error["message"]  # clients recognize the error by these


def test_an_answer_that_the_context_cannot_hold(running: Running) -> None:
    with running.client() as client:
        answer = client.post(CHAT, json={**chat("hi"), "max_tokens": 100_000})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "this model's maximum context length is 2048 tokens" in error["message"]
        assert "prompt is too long" not in error["message"]
        answer = client.post(CHAT, json={**chat("hi"), "temperature": 1000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, None)


def held_up(running: Running, monkeypatch: pytest.MonkeyPatch, large: Callable[..., bool]):
    """An event that large preparations wait for, and the list of started ones."""
    go, begun = threading.Event(), []
    row_steps = running.engine.rows.row_steps

    def waiting(messages: Any, **options: Any) -> Any:
        if large(messages):
            begun.append(messages)
            assert go.wait(60)
        return row_steps(messages, **options)

    monkeypatch.setattr(running.engine.rows, "row_steps", waiting)
    return go, begun


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_small_chat_does_not_wait_for_large_ones(
    running: Running, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Independent of the number of large requests in preparation."""
    body = chat("the quick fox " * 3000) if kind == "text" else chat([image_part()])
    go, begun = held_up(running, monkeypatch, lambda messages: messages[0].text != "hi")
    with running.client() as client, posting(client, 8, CHAT, json=body) as answers:
        try:
            until(lambda: running.server.admitted == 8 and len(begun) > 0)
            time.sleep(0.2)
            for content in ("hi", "hi"):
                assert client.post(CHAT, json=chat(content), timeout=20).status_code == 200
            assert client.post("/tokenize", json={"prompt": "hi"}, timeout=20).status_code == 200
            prompt = {"prompt": "hi", "max_tokens": 2}
            assert client.post(COMPLETIONS, json=prompt, timeout=20).status_code == 200
            assert not answers
        finally:
            go.set()
    assert [a.status_code for a in answers] == [400 if kind == "text" else 200] * 8


def test_a_client_with_responses_to_read_gets_no_other_large_one(engine: Engine) -> None:
    body = {"prompt": "the quick fox 1 + 2 " * 5000}
    with serving(engine, Settings("tiny", max_requests_bytes=2 << 20)) as running:
        pool = running.server.quotas.bytes
        with running.client() as client:
            assert client.post("/tokenize", json=body).status_code == 200
            until(lambda: pool.used == 0)
            reservation = pool.take(b"127.0.0.1", 3 * (2 << 20) // 4 - 120_000)
            refused = client.post("/tokenize", json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (429, "unread_responses")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.post("/tokenize", json={"prompt": "a b"}).status_code == 200
            reservation.release()
            assert client.post("/tokenize", json=body).status_code == 200
        until(lambda: pool.used == 0)


@pytest.fixture
def short(engine: Engine) -> Iterator[Running]:
    """A server with memory for at most one image."""
    with serving(engine, Settings("tiny", max_requests_bytes=120_000)) as running:
        yield running
        assert running.server.quotas.bytes.used == 0


def test_prompts_without_memory_for_them_are_refused_before_they_are_decoded(
    short: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    decode = media.decode_image

    def decoding(source: bytes, **caps: Any) -> Any:
        decoded.append(source)
        return decode(source, **caps)

    monkeypatch.setattr(media, "decode_image", decoding)
    seen = chat([image_part(), {"type": "text", "text": "what?"}])
    with short.client() as client:
        assert client.post(CHAT, json=seen).status_code == 200
        assert len(decoded) == 1
        with client.stream("POST", CHAT, json={**seen, "max_tokens": 1500, "stream": True}) as one:
            lines = one.iter_lines()
            next(lines)
            until(lambda: len(decoded) == 2)
            reserved = short.server.quotas.bytes.used
            assert 40_000 < reserved < 80_000
            gauge = f'polyphi:requests_bytes{{model_name="tiny"}} {float(reserved)}'
            assert gauge in client.get("/metrics").text
            refused = client.post(CHAT, json=seen)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (429, "memory_full")
            assert int(refused.headers["retry-after"]) >= 1 and "images" in error["message"]
            assert len(decoded) == 2
            assert (
                client.post(CHAT, json=chat("hi")).status_code == 200
            )  # text needs next to nothing
        until(lambda: short.server.quotas.bytes.used == 0)
        assert client.post(CHAT, json=seen).status_code == 200


@pytest.mark.parametrize("path", few([CHAT, COMPLETIONS], 1))
def test_a_stream_does_not_keep_the_body_that_asked_for_it(running: Running, path: str) -> None:
    """Its images are kept as crops; the text of the request is freed before the first event."""
    body: dict[str, Any] = {"max_tokens": 1500, "stream": True}
    if path == CHAT:
        body |= chat([image_part(), {"type": "text", "text": "what?"}], **body)
    else:
        body["prompt"] = "the quick fox " * 50
    with running.client() as client, client.stream("POST", path, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: running.engine.counters().running > 0)
        gc.collect()
        alive = [o for o in gc.get_objects() if issubclass(type(o), HttpRequest | Sampling)]
        assert {type(one) for one in alive} >= {HttpRequest}
        for one in alive:
            known = vars(one)
            assert not {"_body", "_json"} & known.keys() and not known.get("messages")
            assert not known.get("prompt")
    until(running.idle)


def test_a_prompt_that_is_alone_may_take_more(short: Running) -> None:
    with short.client() as client:
        pictures = chat([image_part()] * 4)
        for _ in range(2):
            assert client.post(CHAT, json=pictures).status_code == 200
        for broken in (
            chat(
                [image_part(), {**image_part(), "image_url": {"url": "data:image/png;base64,QUJD"}}]
            ),
            chat([image_part()] * 200),
        ):
            assert 400 <= client.post(CHAT, json=broken).status_code < 500
        prompts = {"prompt": ["the quick fox " * 40] * 100, "max_tokens": 1}
        assert client.post(COMPLETIONS, json=prompts).status_code == 200
        reservation = short.server.quotas.bytes.take(b"other", 60_000)
        answer = client.post(COMPLETIONS, json=prompts)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "memory_full")
        reservation.release()


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (CompletionRequest, {"prompt": [1.5] * 200_000}),
        (CompletionRequest, {"prompt": [[1], ["a"] * 200_000]}),
        (DetokenizeRequest, {"tokens": ["a"] * 200_000}),
        (ChatRequest, chat([{"type": "text", "text": 1}] * 15_000)),
        (ChatRequest, {"messages": [{"role": "user", "content": 1}] * 15_000}),
        (ChatRequest, chat("hi", stop=[1] * 200_000)),
        (TokenizeRequest, {"messages": [{"role": "nobody", "content": "a"}] * 15_000}),
    ],
)
def test_a_body_of_many_errors_costs_one(request_type: type[Fields], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        request_type.model_validate(body)
    assert caught.value.error_count() < 10


def test_a_body_of_too_many_objects_is_not_checked_further(running: Running) -> None:
    parts = [{"type": "text", "text": "a"}]
    with running.client() as client:
        assert client.post("/tokenize", json=chat(parts * 10_000)).status_code == 400  # max_tokens
        for body in (
            chat(parts * 20_000),
            {"messages": [{"role": "user", "content": "a"}] * 20_001},
        ):
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 413 and "20,000 objects" in answer.text
