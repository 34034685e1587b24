"""The Responses API through the official client: the answers are chat's, streamed or not; stored ones can be continued,
read and deleted by their owner only."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel
from serve.conftest import Running, serving
from serve.test_chat import (  # noqa: F401
    BOTH_CALLS,
    CALLS,
    CITY,
    TOOLS,
    Model,
    audio_part,
    image_part,
    model,
)
from serve.test_life import until

from polyphi.engine.engine import Engine
from polyphi.serve.settings import Settings

KEYS = ("the-first-key", "the-second-key")
FUNCTIONS = [{"type": "function", **tool["function"]} for tool in TOOLS]
CHAT = "/v1/chat/completions"


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny", keys=KEYS, reasoning=True)) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture
def client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key=KEYS[0], max_retries=0)


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client(KEYS[0]) as client:
        yield client


def parts(*content: dict) -> list[dict]:
    """Chat's parts in the form of the Responses API."""
    converted = []
    for part in content:
        if part["type"] == "image_url":
            converted.append({"type": "input_image", "image_url": part["image_url"]["url"]})
        elif part["type"] == "text":
            converted.append({"type": "input_text", "text": part["text"]})
        else:
            converted.append(part)
    return converted


def content_of(items: list[dict]) -> str:
    texts = [
        part["text"] for item in items if item["type"] == "message" for part in item["content"]
    ]
    return "".join(texts)


def reasoning_of(items: list[dict]) -> str:
    reasoning = [item for item in items if item["type"] == "reasoning"]
    return "".join(part["text"] for item in reasoning for part in item["content"])


def calls_of(items: list[dict]) -> list[tuple[str, str]]:
    return [(i["name"], i["arguments"]) for i in items if i["type"] == "function_call"]


STATUS = {"stop": "completed", "tool_calls": "completed", "length": "incomplete"}
IMAGE, AUDIO = image_part(), audio_part()
TEXT = {"type": "text", "text": "what is this?"}
HISTORY = [
    {"role": "user", "content": "1 + 2"},
    {
        "role": "assistant",
        "content": "I call.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            {
                "id": "b",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "noon"},
    {"role": "tool", "tool_call_id": "b", "content": "20"},
]
ITEMS = [
    {"role": "user", "content": "1 + 2"},
    {"type": "reasoning", "id": "r", "summary": [], "content": []},
    {"role": "assistant", "content": [{"type": "output_text", "text": "I call."}]},
    {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
    {
        "type": "function_call",
        "call_id": "b",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
    },
    {"type": "function_call_output", "call_id": "a", "output": "noon"},
    {
        "type": "function_call_output",
        "call_id": "b",
        "output": [{"type": "input_text", "text": "20"}],
    },
]
# The model's text (None: its own), chat's fields, and the same of the Responses API.
CHOICE = {"structured_outputs": {"choice": ["Rome", "Oslo"]}}
STOP_TOKEN = {"logit_bias": {"7": 100}, "stop_token_ids": [7], "min_tokens": 3}
SAME: dict[str, tuple[str | None, dict, dict]] = {
    "text": (None, {"messages": [{"role": "user", "content": "hi"}]}, {"input": "hi"}),
    "stop token": (
        None,
        {"messages": [{"role": "user", "content": "hi"}], **STOP_TOKEN},
        {"input": "hi", **STOP_TOKEN},
    ),
    "choice": (
        None,
        {"messages": [{"role": "user", "content": "hi"}], **CHOICE},
        {"input": "hi", **CHOICE},
    ),
    "instructions": (
        None,
        {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]},
        {"instructions": "be", "input": [{"role": "user", "content": "hi"}]},
    ),
    "media": (
        None,
        {"messages": [{"role": "user", "content": [IMAGE, AUDIO, TEXT]}]},
        {"input": [{"role": "user", "content": parts(IMAGE, AUDIO, TEXT)}]},
    ),
    "history": (None, {"messages": HISTORY, "tools": TOOLS}, {"input": ITEMS, "tools": FUNCTIONS}),
    "calls": (
        f"<think>one</think>So: {CALLS}",
        {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS},
        {"input": "hi", "tools": FUNCTIONS},
    ),
    "one call": (
        CALLS,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
        {
            "input": "hi",
            "tools": FUNCTIONS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
    ),
    "named": (
        CALLS,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {
            "input": "hi",
            "tools": FUNCTIONS,
            "tool_choice": {"type": "function", "name": "weather"},
        },
    ),
    "schema": (
        None,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": ["Rome", "Oslo"]}},
            },
        },
        {
            "input": "hi",
            "text": {
                "format": {"type": "json_schema", "name": "x", "schema": {"enum": ["Rome", "Oslo"]}}
            },
        },
    ),
}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types, numbered from 0."""
    blocks = [block.split("\n") for block in text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [f"event: {event['type']}" for event in events] == [name for name, _ in blocks]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def joined(events: list[dict]) -> list[dict]:
    """The items whose deltas are these events, without ids."""
    items: list[dict] = []
    for event in events:
        kind, index = event["type"].removeprefix("response."), event.get("output_index")
        if kind == "output_item.added":
            assert index == len(items)
            items.append({**event["item"], "text": ""})
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[index]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[index]["arguments"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == items[index].pop("text")
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == items[index]["arguments"]
        elif kind == "output_item.done":
            assert event["item"]["id"] == items[index]["id"]
            items[index] = event["item"]
    return [without_ids(item) for item in items]


def without_ids(item: dict) -> dict:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


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
    options = {"seed": 1, "temperature": 0.1}
    reply = http.post(CHAT, json={**chat, **options, "max_tokens": 200})
    assert reply.status_code == 200, reply.text
    (choice,), usage = reply.json()["choices"], reply.json()["usage"]
    body = {**ours, **options, "max_output_tokens": 200}
    response = http.post("/v1/responses", json=body).json()
    items = response["output"]
    message = choice["message"]
    assert content_of(items) == (message["content"] or "")
    assert reasoning_of(items) == message.get("reasoning_content", "")
    calls = [call["function"] for call in message.get("tool_calls", [])]
    assert calls_of(items) == [(call["name"], call["arguments"]) for call in calls]
    assert response["status"] == STATUS[choice["finish_reason"]]
    counts = response["usage"]
    assert counts["input_tokens"] == usage["prompt_tokens"]
    assert counts["output_tokens"] == usage["completion_tokens"]
    assert counts["output_tokens_details"] == usage["completion_tokens_details"]
    count = http.post("/v1/responses/input_tokens", json=body).json()
    assert count["input_tokens"] == usage["prompt_tokens"]
    events = events_of(http.post("/v1/responses", json={**body, "stream": True}).text)
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{response['status']}"
    final = events[-1]["response"]
    assert joined(events) == [without_ids(item) for item in items]
    assert [without_ids(i) for i in final["output"]] == [without_ids(i) for i in items]
    changing = {"id", "created_at", "completed_at", "output", "usage"}
    assert {k: v for k, v in final.items() if k not in changing} == {
        k: v for k, v in response.items() if k not in changing
    }


class Town(BaseModel):
    city: str


def test_the_clients_helpers(model: Model, client: OpenAI) -> None:  # noqa: F811
    model.text = "<think>one</think>two"
    created = client.responses.create(model="tiny", input="hi", temperature=0.1)
    assert created.output_text == "two" and created.status == "completed"
    assert created.output[0].type == "reasoning" and created.output[0].content[0].text == "one"
    with client.responses.stream(model="tiny", input="hi", temperature=0.1) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "two"
    model.text = CALLS
    tools = [{**function, "strict": True} for function in FUNCTIONS[:1]]
    with client.responses.stream(model="tiny", input="hi", tools=tools, temperature=0.1) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
        assert [json.loads(e.arguments) for e in done] == [{"city": "Rome"}, {}]
        assert [call.name for call in stream.get_final_response().output] == ["weather", "now"]
    model.text = '{"city": "Oslo"}'
    parsed = client.responses.parse(model="tiny", input="hi", text_format=Town, temperature=0.1)
    assert parsed.output_parsed == Town(city="Oslo")


def test_a_conversation_by_ids(model: Model, client: OpenAI) -> None:  # noqa: F811
    """It has the prompt of the whole conversation as input; the official client sends items back too."""
    options: dict[str, Any] = {"model": "tiny", "temperature": 0.1, "tools": FUNCTIONS}
    model.text = f"<think>one</think>So: {CALLS}"
    first = client.responses.create(input="hi", **options)
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "noon"}
        for item in first.output
        if item.type == "function_call"
    ]
    assert len(outputs) == 2
    model.text = "Done."
    second = client.responses.create(input=outputs, previous_response_id=first.id, **options)
    third = client.responses.create(input="and?", previous_response_id=second.id, **options)
    whole: Any = [
        {"role": "user", "content": "hi"},
        *[item.model_dump() for item in first.output],
        *outputs,
        *second.output,
        {"role": "user", "content": "and?"},
    ]
    same = client.responses.create(input=whole, store=False, **options)
    assert same.usage.input_tokens == third.usage.input_tokens > second.usage.input_tokens
    assert third.previous_response_id == second.id and same.store is False
    client.responses.delete(second.id)
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(input="x", previous_response_id=third.id, **options)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_stored_responses(running: Running, client: OpenAI) -> None:
    image = {"role": "user", "content": parts(IMAGE, TEXT)}
    turns: Any = [{"role": "developer", "content": "be brief"}, image]
    created = client.responses.create(
        model="tiny", input=turns, max_output_tokens=4, metadata={"a": "b"}
    )
    assert created.status == "incomplete"
    assert created.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(created.id) == created
    assert created.metadata == {"a": "b"}
    listed = client.responses.input_items.list(created.id, order="asc")
    assert [item.role for item in listed] == ["developer", "user"]
    assert listed.data[1].content[0].image_url == image["content"][0]["image_url"]
    page = client.responses.input_items.list(created.id, limit=1)
    assert page.has_more and [item.role for item in page.data] == ["user"]
    assert [item.role for item in page] == ["user", "developer"]  # pages follow by themselves
    for unknown in ("resp_none", created.id + "x"):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(unknown)
    with pytest.raises(BadRequestError):
        client.responses.cancel(created.id)
    with pytest.raises(BadRequestError):
        client.responses.input_items.list(created.id, after="msg_none").data  # noqa: B018
    other = OpenAI(base_url=f"{running.url}/v1", api_key=KEYS[1], max_retries=0)
    for refused in (
        other.responses.retrieve,
        other.responses.delete,
        other.responses.cancel,
        other.responses.input_items.list,
    ):
        with pytest.raises(NotFoundError):
            refused(created.id)
    with pytest.raises(BadRequestError):
        other.responses.create(model="tiny", input="x", previous_response_id=created.id)
    client.responses.delete(created.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(created.id)


def test_log_probabilities_belong_to_the_text(model: Model, http: httpx2.Client) -> None:  # noqa: F811
    model.text = f"<think>one</think>größer {CALLS} als"
    body = {
        "input": "hi",
        "temperature": 0.1,
        "tools": FUNCTIONS,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    response = http.post("/v1/responses", json=body).json()
    messages = [item for item in response["output"] if item["type"] == "message"]
    assert len(messages) == 2
    for item in messages:
        (part,) = item["content"]
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
        written = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode()
        assert part["text"].strip() in written and "one" not in written
    events = events_of(http.post("/v1/responses", json={**body, "stream": True}).text)
    assert joined(events) == [without_ids(item) for item in response["output"]]


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


REFUSED: list[tuple[dict, str]] = [
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].image_url",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].image_url",
    ),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": "x"}]},
        "input[0].arguments",
    ),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": "[" * 5000}]},
        "input[0].arguments",
    ),
    ({"tools": [{"type": "web_search", "filters": {}}]}, "tools[0]"),
    ({"tools": FUNCTIONS * 2}, "tools"),
    ({"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    (
        {
            "tools": FUNCTIONS,
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "x"}],
            },
        },
        "tool_choice.tools",
    ),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tool_choice": "required"}, "tools"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"truncation": "auto"}, "truncation"),
    ({"n": 2}, "n"),
    ({"max_output_tokens": 10**6}, "input"),
    ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": nested(70)}]},
        "tools[0].parameters",
    ),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": nested(900)}]},
        "tools[0].parameters",
    ),
]


def test_what_is_refused(http: httpx2.Client) -> None:
    for fields, param in REFUSED:
        reply = http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4, **fields})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), fields


def test_allowed_tools(model: Model, http: httpx2.Client) -> None:  # noqa: F811
    model.text = CALLS
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    body = {"input": "hi", "tools": FUNCTIONS, "tool_choice": choice, "temperature": 0.1}
    response = http.post("/v1/responses", json=body).json()
    assert calls_of(response["output"])[0] == BOTH_CALLS[0]
    assert {name for name, _ in calls_of(response["output"])} == {"weather"}
    assert response["tool_choice"] == choice


def test_a_client_that_disconnects_frees_everything(running: Running, http: httpx2.Client) -> None:
    body = {"input": "hi", "max_output_tokens": 1500, "stream": True}
    with http.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        created = json.loads(next(lines).removeprefix("data: "))
        until(lambda: running.engine.counters().blocks_in_use > 0)
    until(running.idle)
    assert http.get(f"/v1/responses/{created['response']['id']}").status_code == 404


def test_a_failure_in_a_stream(running: Running, http: httpx2.Client, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(running.engine.runner), "run", fail)
    events = events_of(http.post("/v1/responses", json={"input": "hi", "stream": True}).text)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(events)
    assert http.post("/v1/responses", json={"input": "hi"}).status_code == 500


def test_a_server_without_a_store(engine: Engine) -> None:
    with serving(engine, Settings("tiny", max_stored_bytes=0)) as running, running.client() as http:
        body = {"input": "hi", "max_output_tokens": 2}
        response = http.post("/v1/responses", json=body).json()
        assert response["store"] is False
        assert http.get(f"/v1/responses/{response['id']}").status_code == 404
