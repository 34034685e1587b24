"""Four APIs give one answer, each in its format, streamed or not. Chat's is the reference, which test_chat.py compares
with the engine's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from polyphi.serve.admission.settings import Settings
from tests.core.serve.dialects import (
    CASES,
    CHAT,
    DIALECTS,
    HI,
    RESPONSES,
    Dialect,
    chat_events,
    typed_events,
)
from tests.fixtures.chats import Model
from tests.fixtures.servers import Running, until

KEY = "the-only-key"
OPTIONS = {"seed": 1, "temperature": 0.1}
EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings("tiny", keys=(KEY,), reasoning=True)


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client(KEY) as client:
        yield client


@pytest.mark.parametrize("name", CASES)
def test_every_api_answers_as_chat_does(
    model: Model, http: httpx2.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    if case.text is None:
        monkeypatch.undo()
    model.text = case.text or ""
    request = {**case.request, **OPTIONS}
    expected = CHAT.answer(http, request)
    for dialect in (DIALECTS[name] for name in case.dialects.split()):
        reason = dialect.reasons[expected.reason]
        body = dialect.body(http, request)
        if body.get("stop_sequence"):
            reason = "stop_sequence"
            assert [body["stop_sequence"]] == case.fields["stop"]
        answer = dialect.read(body)
        if dialect.path == "/v1/completions":
            assert (answer.tokens, answer.reason) == (expected.tokens, reason)
        else:
            assert answer == replace(expected, reason=reason)
        assert dialect.streamed(http, request) == answer
        if dialect.count:
            counted = {k: v for k, v in request.items() if k not in (*OPTIONS, "max_tokens")}
            count = http.post(dialect.count, json=dialect.write(counted)).json()
            assert count["input_tokens"] == expected.prompt_tokens


def test_an_empty_answer_has_the_events_that_clients_expect(
    model: Model, http: httpx2.Client
) -> None:
    model.text, request = "", {"messages": HI, "max_tokens": 9, **OPTIONS}
    texts = {name: dialect.stream(http, request) for name, dialect in DIALECTS.items()}
    first, last, _ = chat_events(texts["chat"])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    (choice,) = chat_events(texts["completions"])[0]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    text = [e for e in typed_events(texts["responses"]) if "output_text" in e["type"]]
    assert [e["type"].rpartition(".")[2] for e in text] == ["delta", "done"]
    assert text[0]["delta"] == text[1]["text"] == ""
    # As Anthropic's server: no block, because a block of text that is sent back may not be empty.
    names = [event["type"] for event in typed_events(texts["messages"])]
    assert names == ["message_start", "ping", "message_delta", "message_stop"]
    for name, dialect in DIALECTS.items():
        assert dialect.read(dialect.joined(texts[name])) == dialect.answer(http, request)


@EACH
def test_a_client_that_disconnects_frees_everything(
    running: Running, http: httpx2.Client, dialect: Dialect
) -> None:
    request = {"messages": HI, "max_tokens": 1500, "ignore_eos": True}
    body = {**dialect.write(request), **dialect.streaming}
    with http.stream("POST", dialect.path, json=body) as reply:
        lines = reply.iter_lines()  # kept: a forgotten iterator hangs up by itself
        first = [next(lines), next(lines)]
        until(lambda: running.engine.counters().blocks_in_use > 0)
    until(running.idle)
    until(lambda: not running.server.admitted)
    if dialect is RESPONSES:  # it is not stored
        id = json.loads(first[1].removeprefix("data: "))["response"]["id"]
        assert http.get(f"{dialect.path}/{id}").status_code == 404


@EACH
def test_a_failure_in_a_stream(
    running: Running, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, dialect: Dialect
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret /path 0xdeadbeef")

    body = dialect.write({"messages": HI, "max_tokens": 200})
    with monkeypatch.context() as patch:
        patch.setattr(type(running.engine.runner), "run", fail)
        text = http.post(dialect.path, json={**body, **dialect.streaming}).text
        last = json.loads(text.rstrip().rpartition("data: ")[2])
        assert contains(last, dialect.failure) and "secret" not in text
        reply = http.post(dialect.path, json=body)
        assert reply.status_code == 500 and "secret" not in reply.text
    assert http.post(dialect.path, json=body).status_code == 200


def contains(value: Any, part: Any) -> bool:
    """Whether all that `part` has is in `value`."""
    if not isinstance(part, dict):
        return bool(value == part)
    return all(name in value and contains(value[name], part[name]) for name in part)
