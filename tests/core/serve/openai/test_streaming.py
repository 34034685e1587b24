"""Four APIs give one answer, each in its format, streamed or not. Chat's is the reference, which test_chat.py compares
with the engine's."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest
from fixtures.chats import CALLS, CITY, Model, add_calls, audio_part, image_part
from fixtures.servers import Running, serving, until
from pydantic_core import from_json

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings

KEY = "the-only-key"
HI: list[dict] = [{"role": "user", "content": "hi"}]
FINAL = [*HI, {"role": "assistant", "content": "I"}]
IMAGE, AUDIO = image_part(), audio_part()
URL = IMAGE["image_url"]["url"]
QUESTION = {"type": "text", "text": "what is this?"}
# Functions as chat, the Responses API and the Messages API write them.
SCHEMAS: dict[str, dict] = {"weather": CITY, "now": {}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
FUNCTIONS = [
    {"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()
]
BLOCK_TOOLS = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
# An answer with calls and their results, as the three write it.
HISTORY: list[dict] = [
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
ITEMS: list[dict] = [
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
CHOICE = {"structured_outputs": {"choice": ["Rome", "Oslo"]}}
STOP_TOKEN = {"logit_bias": {"7": 100}, "stop_token_ids": [7], "min_tokens": 3}
ONE_OF = {"enum": ["Rome", "Oslo"]}
THOUGHTS = "<think>one and two and three</think>four"


@dataclass(frozen=True)
class Case:
    """A request in the form of each API that has one. `text` is what the model writes (None: its own)."""

    chat: dict[str, Any]
    responses: dict[str, Any] | None = None
    messages: dict[str, Any] | None = None
    text: str | None = None


CASES = {
    "text": Case({}, {}, {}),
    "stop token": Case(STOP_TOKEN, STOP_TOKEN, STOP_TOKEN),
    "choice": Case(CHOICE, CHOICE, CHOICE),
    "cut off": Case({"max_tokens": 5}, {"max_output_tokens": 5}, {"max_tokens": 5}),
    "system": Case(
        {"messages": [{"role": "system", "content": "be brief"}, *HI]},
        {"instructions": "be brief", "input": HI},
        {
            "system": [
                {"type": "text", "text": "be "},
                {"type": "text", "text": "brief", "cache_control": {"type": "ephemeral"}},
            ]
        },
    ),
    "image": Case(
        {"messages": [{"role": "user", "content": [IMAGE, QUESTION]}]},
        messages={
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": URL.partition(",")[2],
                            },
                        },
                        QUESTION,
                    ],
                }
            ]
        },
    ),
    "image and audio": Case(
        {"messages": [{"role": "user", "content": [IMAGE, AUDIO, QUESTION]}]},
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": URL},
                        AUDIO,
                        {"type": "input_text", "text": QUESTION["text"]},
                    ],
                }
            ]
        },
    ),
    "history": Case(
        {"messages": HISTORY, "tools": TOOLS},
        {"input": ITEMS, "tools": FUNCTIONS},
        {"messages": BLOCKS, "tools": BLOCK_TOOLS},
    ),
    "calls": Case(
        {"tools": TOOLS},
        {"tools": FUNCTIONS},
        {"tools": BLOCK_TOOLS, "tool_choice": {"type": "auto"}},
        text=f"<think>one</think>So: {CALLS}",
    ),
    "one call": Case(
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": BLOCK_TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        text=CALLS,
    ),
    "named call": Case(
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "weather"}},
        {"tools": BLOCK_TOOLS, "tool_choice": {"type": "tool", "name": "weather"}},
        text=CALLS,
    ),
    "schema": Case(
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": ONE_OF},
            }
        },
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": ONE_OF}}},
        {"output_config": {"format": {"type": "json_schema", "schema": ONE_OF}}},
    ),
    "reasoning budget": Case(
        {"thinking_token_budget": 12},
        messages={"thinking": {"type": "enabled", "budget_tokens": 12}},
        text=THOUGHTS,
    ),
    "no reasoning": Case(
        {"reasoning_effort": "none"}, messages={"thinking": {"type": "disabled"}}, text=THOUGHTS
    ),
    "final message": Case(
        {"messages": FINAL, "continue_final_message": True, "add_generation_prompt": False},
        messages={"messages": FINAL},
    ),
    "stop sequence": Case(
        {"stop": ["wo"]}, messages={"stop_sequences": ["wo"]}, text="one two three"
    ),
}


@dataclass(frozen=True)
class Answer:
    """An answer in no API's format. `reason` is chat's; other APIs give less than it."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]
    reason: str
    prompt_tokens: int
    tokens: int
    reasoning_tokens: int


def chat_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream of chat or completions."""
    *events, done = text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def typed_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream of the Responses or the Messages API, whose names are their types."""
    blocks = [block.split("\n") for block in text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [f"event: {event['type']}" for event in events] == [name for name, _ in blocks]
    return events


def chat_joined(text: str) -> dict[str, Any]:
    """The body whose chunks these are."""
    *chunks, last = chat_events(text)
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reasons = []
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name) or ""
        add_calls(message["tool_calls"], choice["delta"].get("tool_calls"))
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    (reason,) = reasons
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": last["usage"]}


def chat_answer(body: dict[str, Any]) -> Answer:
    (choice,), usage = body["choices"], body["usage"]
    message, details = choice["message"], usage["completion_tokens_details"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return Answer(
        message["content"] or "",
        message.get("reasoning_content", ""),
        tuple((call["name"], json.loads(call["arguments"])) for call in calls),
        choice["finish_reason"],
        usage["prompt_tokens"],
        usage["completion_tokens"],
        details["reasoning_tokens"],
    )


def responses_joined(text: str) -> dict[str, Any]:
    """The response whose events these are. Its items are those of the deltas and of the last event."""
    first, second, *events, last = typed_events(text)
    assert [first["type"], second["type"]] == ["response.created", "response.in_progress"]
    numbers = [event["sequence_number"] for event in (first, second, *events, last)]
    assert numbers == list(range(len(numbers)))
    response = last["response"]
    assert last["type"] == f"response.{response['status']}"
    assert items_of(events) == [without_ids(item) for item in response["output"]]
    return response


def items_of(events: list[dict]) -> list[dict]:
    """The items of a response whose deltas are these events, without ids."""
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


def responses_answer(body: dict[str, Any]) -> Answer:
    items, usage = body["output"], body["usage"]

    def text(kind: str) -> str:
        parts = [part for item in items if item["type"] == kind for part in item["content"]]
        return "".join(part["text"] for part in parts)

    calls = [item for item in items if item["type"] == "function_call"]
    details = usage["output_tokens_details"]
    return Answer(
        text("message"),
        text("reasoning"),
        tuple((call["name"], json.loads(call["arguments"])) for call in calls),
        body["status"],
        usage["input_tokens"],
        usage["output_tokens"],
        details["reasoning_tokens"],
    )


def messages_joined(text: str) -> dict[str, Any]:
    """The message whose events these are."""
    start, *rest = [event for event in typed_events(text) if event["type"] != "ping"]
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
                blocks[index]["input"] = from_json(text or "{}", allow_partial=True)
    return message


def messages_answer(body: dict[str, Any]) -> Answer:
    blocks, usage = body["content"], body["usage"]

    def text(kind: str) -> str:
        return "".join(block[kind] for block in blocks if block["type"] == kind)

    return Answer(
        text("text"),
        text("thinking"),
        tuple((block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"),
        body["stop_reason"],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        usage["output_tokens"],
        usage["output_tokens_details"]["thinking_tokens"],
    )


def completions_joined(text: str) -> dict[str, Any]:
    *chunks, last = chat_events(text)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    whole = {
        "text": "".join(choice["text"] for choice in choices),
        "finish_reason": choices[-1]["finish_reason"],
    }
    return {"choices": [whole], "usage": last["usage"]}


def completions_answer(body: dict[str, Any]) -> Answer:
    (choice,), usage = body["choices"], body["usage"]
    counts = usage["prompt_tokens"], usage["completion_tokens"], 0
    return Answer(choice["text"], "", (), choice["finish_reason"], *counts)


@dataclass(frozen=True)
class Api:
    """A path that answers. `body`: a request that leaves room for 200 tokens; `length`: its field for fewer; `reasons`:
    its reasons to stop by chat's; `failure`: what its last event has after a failure; `count`: the path that counts."""

    path: str
    body: dict[str, Any]
    length: str
    stream: dict[str, Any]
    joined: Callable[[str], dict[str, Any]]
    answer: Callable[[dict[str, Any]], Answer]
    reasons: dict[str, str]
    failure: dict[str, Any]
    count: str | None = None


SAME_REASONS = {reason: reason for reason in ("stop", "length", "tool_calls")}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
APIS = {
    "chat": Api(
        "/v1/chat/completions",
        {"messages": HI, "max_tokens": 200},
        "max_tokens",
        USAGE,
        chat_joined,
        chat_answer,
        SAME_REASONS,
        {"error": {"type": "server_error"}},
    ),
    "completions": Api(
        "/v1/completions",
        {"prompt": "hi", "max_tokens": 200},
        "max_tokens",
        USAGE,
        completions_joined,
        completions_answer,
        SAME_REASONS,
        {"error": {"type": "server_error"}},
    ),
    "responses": Api(
        "/v1/responses",
        {"input": "hi", "max_output_tokens": 200},
        "max_output_tokens",
        {"stream": True},
        responses_joined,
        responses_answer,
        {"stop": "completed", "tool_calls": "completed", "length": "incomplete"},
        {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
        "/v1/responses/input_tokens",
    ),
    "messages": Api(
        "/v1/messages",
        {"messages": HI, "max_tokens": 200},
        "max_tokens",
        {"stream": True},
        messages_joined,
        messages_answer,
        {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"},
        {"type": "error", "error": {"type": "api_error"}},
        "/v1/messages/count_tokens",
    ),
}
OPTIONS = {"seed": 1, "temperature": 0.1}


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny", keys=(KEY,), reasoning=True)) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client(KEY) as client:
        yield client


def post(http: httpx2.Client, path: str, body: dict[str, Any]) -> httpx2.Response:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply


@pytest.mark.parametrize("case", CASES)
def test_every_api_answers_as_chat_does(
    model: Model,
    http: httpx2.Client,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.text = CASES[case].text or ""
    if CASES[case].text is None:
        monkeypatch.undo()
    expected: Answer | None = None
    for name, api in APIS.items():
        if (fields := getattr(CASES[case], name, None)) is None:
            continue
        length = {} if CASES[case].text or case == "schema" else {api.length: 24}
        body = {**api.body, **OPTIONS, **length, **fields}
        whole = post(http, api.path, body).json()
        answer = api.answer(whole)
        expected = expected or answer
        reason = api.reasons[expected.reason]
        if (case, name) == ("stop sequence", "messages"):
            reason = "stop_sequence"
            assert whole["stop_sequence"] == "wo"
        assert answer == replace(expected, reason=reason)
        assert api.answer(api.joined(post(http, api.path, {**body, **api.stream}).text)) == answer
        if api.count:
            counted = {k: v for k, v in body.items() if k not in (*OPTIONS, api.length)}
            count = post(http, api.count, counted).json()
            assert count["input_tokens"] == expected.prompt_tokens


def test_an_empty_answer_has_the_events_that_clients_expect(
    model: Model,
    http: httpx2.Client,
) -> None:
    model.text = ""
    texts = {
        name: post(http, api.path, {**api.body, **OPTIONS, **api.stream}).text
        for name, api in APIS.items()
    }
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
    for name, api in APIS.items():
        whole = post(http, api.path, {**api.body, **OPTIONS}).json()
        assert api.answer(api.joined(texts[name])) == api.answer(whole)


@pytest.mark.parametrize("api", APIS.values(), ids=APIS)
def test_text_is_cut_alike(http: httpx2.Client, api: Api) -> None:
    """With every limit, an API gives the same tokens, streamed or not."""
    for tokens in (1, 2, 5):
        body = {**api.body, **OPTIONS, api.length: tokens}
        answer = api.answer(post(http, api.path, body).json())
        assert (answer.tokens, answer.reason) == (tokens, api.reasons["length"])
        assert api.answer(api.joined(post(http, api.path, {**body, **api.stream}).text)) == answer


@pytest.mark.parametrize("api", APIS.values(), ids=APIS)
def test_a_client_that_disconnects_frees_everything(
    running: Running, http: httpx2.Client, api: Api
) -> None:
    body = {**api.body, **api.stream, api.length: 1500, "ignore_eos": True}
    with http.stream("POST", api.path, json=body) as reply:
        lines = reply.iter_lines()  # kept: a forgotten iterator hangs up by itself
        next(lines)
        until(lambda: running.engine.counters().blocks_in_use > 0)
    until(running.idle)


@pytest.mark.parametrize("api", APIS.values(), ids=APIS)
def test_a_failure_in_a_stream(
    running: Running, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(running.engine.runner), "run", fail)
    text = http.post(api.path, json={**api.body, **api.stream}).text
    last = json.loads(text.rstrip().rpartition("data: ")[2])
    assert contains(last, api.failure) and "secret" not in text
    reply = http.post(api.path, json=api.body)
    assert reply.status_code == 500 and "secret" not in reply.text


def contains(value: Any, part: Any) -> bool:
    """Whether all that `part` has is in `value`."""
    if not isinstance(part, dict):
        return bool(value == part)
    return all(name in value and contains(value[name], part[name]) for name in part)
