"""Anthropic's Messages API: the answers are chat's, streamed or not; formats and errors are Anthropic's."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from serve.conftest import Running, serving
from serve.test_chat import (  # noqa: F401
    BOTH_CALLS,
    CALL,
    CALLS,
    TOOLS,
    Model,
    image_part,
    model,
)
from serve.test_life import until
from serve.test_responses import HISTORY, nested

from polyphi.engine.engine import Engine
from polyphi.serve.settings import Settings

KEY = "the-only-key"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
FUNCTIONS = [
    {
        "name": tool["function"]["name"],
        **(
            {"input_schema": tool["function"]["parameters"]}
            if "parameters" in tool["function"]
            else {"input_schema": {}}
        ),
    }
    for tool in TOOLS
]
CHAT_TOOLS = [
    {"type": "function", "function": {"name": one["name"], "parameters": one["input_schema"]}}
    for one in FUNCTIONS
]


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


IMAGE = image_part()
DATA = IMAGE["image_url"]["url"].partition(",")[2]
HI: list[dict] = [{"role": "user", "content": "hi"}]
FINAL = [*HI, {"role": "assistant", "content": "I"}]
BLOCKS: list[dict] = [
    {"role": "user", "content": "1 + 2"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "I call."},
            {"type": "tool_use", "id": "a", "name": "now", "input": {}},
            {"type": "tool_use", "id": "b", "name": "weather", "input": {"city": "Rome"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "noon"},
            {
                "type": "tool_result",
                "tool_use_id": "b",
                "content": [{"type": "text", "text": "20"}],
            },
        ],
    },
]
# The model's text (None: its own), chat's fields, and the same of the Messages API.
CHOICE = {"structured_outputs": {"choice": ["Rome", "Oslo"]}}
STOP_TOKEN = {"logit_bias": {"7": 100}, "stop_token_ids": [7], "min_tokens": 3}
SAME: dict[str, tuple[str | None, dict, dict]] = {
    "text": (None, {"messages": HI}, {"messages": HI}),
    "system": (
        None,
        {"messages": [{"role": "system", "content": "be brief"}, *HI]},
        {
            "system": [
                {"type": "text", "text": "be "},
                {"type": "text", "text": "brief", "cache_control": {"type": "ephemeral"}},
            ],
            "messages": HI,
        },
    ),
    "image": (
        None,
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "hm"}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": DATA},
                        },
                        {"type": "text", "text": "hm"},
                    ],
                }
            ]
        },
    ),
    "history": (
        None,
        {"messages": HISTORY, "tools": CHAT_TOOLS},
        {"messages": BLOCKS, "tools": FUNCTIONS},
    ),
    "calls": (
        f"<think>one</think>So: {CALLS}",
        {"messages": HI, "tools": CHAT_TOOLS},
        {"messages": HI, "tools": FUNCTIONS, "tool_choice": {"type": "auto"}},
    ),
    "one call": (
        CALLS,
        {
            "messages": HI,
            "tools": CHAT_TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
        {
            "messages": HI,
            "tools": FUNCTIONS,
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
    ),
    "named": (
        CALLS,
        {
            "messages": HI,
            "tools": CHAT_TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {"messages": HI, "tools": FUNCTIONS, "tool_choice": {"type": "tool", "name": "weather"}},
    ),
    "budget": (
        "<think>one and two and three</think>four",
        {"messages": HI, "thinking_token_budget": 12},
        {"messages": HI, "thinking": {"type": "enabled", "budget_tokens": 12}},
    ),
    "no thinking": (
        "<think>one and two and three</think>four",
        {"messages": HI, "reasoning_effort": "none"},
        {"messages": HI, "thinking": {"type": "disabled"}},
    ),
    "final message": (
        None,
        {"messages": FINAL, "continue_final_message": True, "add_generation_prompt": False},
        {"messages": FINAL},
    ),
    "stop": ("one two three", {"messages": HI, "stop": ["wo"]}, {"stop_sequences": ["wo"]}),
    "stop token": (None, {"messages": HI, **STOP_TOKEN}, STOP_TOKEN),
    "choice": (None, {"messages": HI, **CHOICE}, CHOICE),
    "schema": (
        None,
        {
            "messages": HI,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": ["Rome", "Oslo"]}},
            },
        },
        {
            "output_config": {
                "format": {"type": "json_schema", "schema": {"enum": ["Rome", "Oslo"]}}
            }
        },
    ),
}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types."""
    blocks = [block.split("\n") for block in text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [f"event: {event['type']}" for event in events] == [name for name, _ in blocks]
    return events


def joined(events: list[dict]) -> dict:
    """The message whose events these are."""
    start, *rest = [event for event in events if event["type"] != "ping"]
    message, last = start["message"], rest.pop()
    assert (start["type"], last["type"]) == ("message_start", "message_stop")
    blocks, open_block = message["content"], None
    for event in rest:
        kind, index = event["type"], event.get("index")
        if kind == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
            continue
        if kind == "content_block_start":
            assert open_block is None and index == len(blocks)
            open_block = {**event["content_block"], "json": ""}
            blocks.append(open_block)
        elif kind == "content_block_delta":
            assert blocks[index] is open_block
            delta = dict(event["delta"])
            type_ = delta.pop("type").removesuffix("_delta")
            name = "json" if type_ == "input_json" else type_
            (text,) = delta.values()
            open_block[name] += text
        else:
            assert kind == "content_block_stop" and blocks[index] is open_block
            text, open_block = open_block.pop("json"), None
            if blocks[index]["type"] == "tool_use":
                blocks[index]["input"] = json.loads(text)
    return message


def comparable(message: dict) -> dict:
    """Without ids and fields that streams have in other events."""
    blocks = [{k: v for k, v in b.items() if k != "id"} for b in message["content"]]
    names = ("type", "role", "model", "stop_reason", "stop_sequence", "usage")
    return {"content": blocks, **{name: message[name] for name in names}}


def texts(blocks: list[dict], type_: str) -> str:
    return "".join(block[type_] for block in blocks if block["type"] == type_)


REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


@pytest.mark.parametrize("case", SAME)
def test_it_answers_as_chat_does(
    model: Model,  # noqa: F811
    http: httpx2.Client,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, chat, ours = SAME[case]
    model.text = text or ""
    if text is None:
        monkeypatch.undo()
    options = {"seed": 1, "temperature": 0.1, "max_tokens": 200}
    reply = http.post(CHAT, json={**chat, **options})
    assert reply.status_code == 200, reply.text
    (choice,), usage = reply.json()["choices"], reply.json()["usage"]
    body = {"messages": HI, **ours, **options}
    reply = http.post(MESSAGES, json=body)
    assert reply.status_code == 200, reply.text
    message, answered = reply.json(), choice["message"]
    blocks = message["content"]
    assert texts(blocks, "text") == (answered["content"] or "")
    assert texts(blocks, "thinking") == answered.get("reasoning_content", "")
    calls = [call["function"] for call in answered.get("tool_calls", [])]
    assert [(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"] == [
        (call["name"], json.loads(call["arguments"])) for call in calls
    ]
    reason = "stop_sequence" if case == "stop" else REASONS[choice["finish_reason"]]
    sequence = "wo" if case == "stop" else None
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    counts = message["usage"]
    assert counts["input_tokens"] == usage["prompt_tokens"]
    assert counts["output_tokens"] == usage["completion_tokens"]
    thinking = usage["completion_tokens_details"]["reasoning_tokens"]
    assert counts["output_tokens_details"] == {"thinking_tokens": thinking}
    counted = http.post(f"{MESSAGES}/count_tokens", json={"messages": HI, **ours}).json()
    assert counted == {"input_tokens": usage["prompt_tokens"]}
    stream = joined(events_of(http.post(MESSAGES, json={**body, "stream": True}).text))
    assert comparable(stream) == comparable(message)


def test_a_call_that_is_cut_off_is_left_out(model: Model, http: httpx2.Client) -> None:  # noqa: F811
    model.text = CALLS
    body = {"messages": HI, "tools": FUNCTIONS, "tool_choice": {"type": "any"}}
    body |= {"temperature": 0.1, "seed": 1}
    counts = set()
    for most in range(10, 90, 20):
        message = http.post(MESSAGES, json={**body, "max_tokens": most}).json()
        stream = http.post(MESSAGES, json={**body, "max_tokens": most, "stream": True}).text
        assert comparable(joined(events_of(stream))) == comparable(message)
        assert message["stop_reason"] in ("max_tokens", "tool_use")
        for block, (name, arguments) in zip(message["content"], BOTH_CALLS, strict=False):
            assert (block["name"], block["input"]) == (name, json.loads(arguments))
        counts.add(len(message["content"]))
    assert {0, 1} <= counts


def test_numbers_of_a_call_stay_as_the_model_wrote_them(
    model: Model,  # noqa: F811
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
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
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


def test_a_client_that_disconnects_frees_everything(running: Running, http: httpx2.Client) -> None:
    body = {"messages": HI, "max_tokens": 1500, "stream": True}
    with http.stream("POST", MESSAGES, json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        until(lambda: running.engine.counters().blocks_in_use > 0)
    until(running.idle)


def test_a_failure_in_a_stream(running: Running, http: httpx2.Client, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(running.engine.runner), "run", fail)
    body = {"messages": HI, "max_tokens": 4, "stream": True}
    text = http.post(MESSAGES, json=body).text
    last = events_of(text)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert "secret" not in text
