"""Anthropic's Messages API: formats and errors are Anthropic's. Its answers are chat's: test_streaming.py."""

import json
from collections.abc import Iterator

import httpx2
import pytest
from fixtures.chats import BOTH_CALLS, CALLS, Model
from fixtures.servers import Running, serving
from serve.openai.test_responses import nested
from serve.openai.test_streaming import BLOCK_TOOLS as FUNCTIONS
from serve.openai.test_streaming import BLOCKS, HI, messages_joined

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.types.tools import CALL

KEY = "the-only-key"
MESSAGES = "/v1/messages"


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny", keys=(KEY,), reasoning=True)) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client() as client:
        client.headers |= {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
        yield client


def comparable(message: dict) -> dict:
    """Without ids and fields that streams have in other events."""
    blocks = [{k: v for k, v in b.items() if k != "id"} for b in message["content"]]
    names = ("type", "role", "model", "stop_reason", "stop_sequence")
    usage = dict(message["usage"])
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    return {"content": blocks, "usage": usage, **{name: message[name] for name in names}}


def test_a_call_that_is_cut_off_has_the_complete_members_of_its_input(
    model: Model,
    http: httpx2.Client,
) -> None:
    model.text = CALLS
    body = {"messages": HI, "tools": FUNCTIONS, "tool_choice": {"type": "any"}}
    body |= {"temperature": 0.1, "seed": 1}
    counts, inputs = set(), []
    for most in range(10, 90, 20):
        message = http.post(MESSAGES, json={**body, "max_tokens": most}).json()
        stream = http.post(MESSAGES, json={**body, "max_tokens": most, "stream": True}).text
        assert comparable(messages_joined(stream)) == comparable(message)
        assert message["stop_reason"] in ("max_tokens", "tool_use")
        for block, (name, arguments) in zip(message["content"], BOTH_CALLS, strict=False):
            assert block["name"] == name
            assert block["input"] in ({}, json.loads(arguments))
        counts.add(len(message["content"]))
        inputs += [block["input"] for block in message["content"]]
    assert {0, 1} <= counts and {} in inputs


def test_numbers_of_a_call_stay_as_the_model_wrote_them(
    model: Model,
    http: httpx2.Client,
) -> None:
    model.text = f'{CALL}[{{"name": "now", "arguments": {{"a": 1e999, "b": "\\ud800"}}}}]'
    body = {"messages": HI, "tools": FUNCTIONS, "temperature": 0.1, "max_tokens": 200}
    reply = http.post(MESSAGES, json=body)
    assert '"input":{"a": 1e999, "b": "\\ud800"}' in reply.text


REFUSED: list[tuple[dict, str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 10**6}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": BLOCKS[:2], "tools": FUNCTIONS}, "messages[1]"),
    ({"messages": [{"role": "tool", "content": "I"}]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "folder"}]}]},
        "messages[0].content[0]",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}
            ]
        },
        "messages[0].content[0].source",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "source": {"type": "base64", "data": "?"}}],
                }
            ]
        },
        "messages[0].content[0].source.data",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}],
                }
            ]
        },
        "messages[0].content[0]",
    ),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ({"tools": FUNCTIONS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "any"}}, "tools"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": 1000}, "temperature"),
    ({"mcp_servers": []}, "mcp_servers"),
    ({"tools": [{"name": "f", "input_schema": nested(900)}]}, "tools[0].input_schema"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "strin"}}}},
        "output_config.format",
    ),
]


def test_errors_have_anthropics_form(running: Running, http: httpx2.Client) -> None:
    for fields, param in REFUSED:
        reply = http.post(MESSAGES, json={"messages": HI, "max_tokens": 4, **fields})
        body = reply.json()
        assert (reply.status_code, body["error"]["param"]) == (400, param), (fields, body)
        assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    with running.client() as stranger:
        for path in (MESSAGES, f"{MESSAGES}/count_tokens"):
            reply = stranger.post(path, json={})
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "authentication_error"
    reply = http.post(MESSAGES, json={"model": "x", "messages": HI, "max_tokens": 4})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
    reply = http.post(MESSAGES, content=b"{}", headers={"content-type": "text/plain"})
    assert (reply.status_code, reply.json()["type"]) == (415, "error")
    assert http.get("/v1/messages/none").json()["error"]["type"] == "not_found_error"
