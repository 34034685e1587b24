"""Four APIs as dialects of one: how a chat request is written in each, and how its answers and streams are read.

Requests of tests are chat's. `Dialect.write` translates one, and `Dialect.answer` reads the answer in no API's form.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic_core import from_json

from tests.fixtures.chats import CALLS, CITY, add_calls, audio_part, image_part

Json = dict[str, Any]

HI: list[Json] = [{"role": "user", "content": "hi"}]
IMAGE, AUDIO = image_part(), audio_part()
QUESTION: Json = {"type": "text", "text": "what is this?"}
TOOLS: list[Json] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
WEATHER: Json = {"type": "function", "function": {"name": "weather"}}


def data_of(url: str) -> str:
    """The base64 of a data URL."""
    return url.partition(",")[2]


@dataclass(frozen=True)
class Answer:
    """An answer in no API's form. `reason` is chat's; other APIs give less than it."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]
    reason: str
    prompt_tokens: int
    tokens: int
    reasoning_tokens: int


# Chat and completions


def chat_events(text: str) -> list[Json]:
    """The events of a stream of chat or completions."""
    *events, done = text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def chat_joined(text: str) -> Json:
    """The body whose chunks these are."""
    *chunks, last = chat_events(text)
    message: Json = {"content": "", "reasoning_content": "", "tool_calls": []}
    reasons = []
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name) or ""
        add_calls(message["tool_calls"], choice["delta"].get("tool_calls"))
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    (reason,) = reasons
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": last["usage"]}


def chat_answer(body: Json) -> Answer:
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


def completions_request(chat: Json) -> Json:
    """Completions have no messages: the last one's text is the prompt."""
    fields = {name: value for name, value in chat.items() if name != "messages"}
    return {"prompt": chat["messages"][-1]["content"], **fields}


def completions_joined(text: str) -> Json:
    *chunks, last = chat_events(text)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    joined = "".join(choice["text"] for choice in choices)
    whole = {"text": joined, "finish_reason": choices[-1]["finish_reason"]}
    return {"choices": [whole], "usage": last["usage"]}


def completions_answer(body: Json) -> Answer:
    (choice,), usage = body["choices"], body["usage"]
    counts = usage["prompt_tokens"], usage["completion_tokens"], 0
    return Answer(choice["text"], "", (), choice["finish_reason"], *counts)


# Responses and messages


def typed_events(text: str) -> list[Json]:
    """The events of a stream whose names are their types."""
    blocks = [block.split("\n") for block in text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [f"event: {event['type']}" for event in events] == [name for name, _ in blocks]
    return events


def input_part(part: Json, text: str = "input_text") -> Json:
    match part["type"]:
        case "text":
            return {"type": text, "text": part["text"]}
        case "image_url":
            return {"type": "input_image", "image_url": part["image_url"]["url"]}
        case "file":
            return {"type": "input_file", **part["file"]}
        case _:
            return part


def items(message: Json) -> list[Json]:
    """The items of a chat message."""
    role, content = message["role"], message.get("content")
    text = "output_text" if role == "assistant" else "input_text"
    if isinstance(content, list):
        content = [input_part(part, text) for part in content]
    if role == "tool":
        call_id = message["tool_call_id"]
        return [{"type": "function_call_output", "call_id": call_id, "output": content}]
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]}
        for call in message.get("tool_calls", ())
    ]
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "content": []}
    before = [reasoning] if "reasoning_content" in message else []
    return [*before, *([{"role": role, "content": content}] if content else []), *calls]


def responses_request(chat: Json) -> Json:
    body = {**chat, "input": [item for m in chat["messages"] for item in items(m)]}
    del body["messages"]
    if "max_tokens" in body:
        body["max_output_tokens"] = body.pop("max_tokens")
    if "tools" in body:
        body["tools"] = [{"type": "function", **tool["function"]} for tool in body["tools"]]
    if isinstance(choice := body.get("tool_choice"), dict):
        body["tool_choice"] = {"type": "function", **choice["function"]}
    if "response_format" in body:
        form = body.pop("response_format")
        body["text"] = {"format": {"type": form["type"], **form["json_schema"]}}
    return body


def responses_joined(text: str) -> Json:
    """The response whose events these are. Its items are those of the deltas and of the last event."""
    first, second, *events, last = typed_events(text)
    assert [first["type"], second["type"]] == ["response.created", "response.in_progress"]
    numbers = [event["sequence_number"] for event in (first, second, *events, last)]
    assert numbers == list(range(len(numbers)))
    response = last["response"]
    assert last["type"] == f"response.{response['status']}"
    assert items_of(events) == [without_ids(item) for item in response["output"]]
    return response


def items_of(events: list[Json]) -> list[Json]:
    """The items of a response whose deltas are these events, without ids."""
    items: list[Json] = []
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


def without_ids(item: Json) -> Json:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def responses_answer(body: Json) -> Answer:
    items, usage = body["output"], body["usage"]

    def text(kind: str) -> str:
        parts = [part for item in items if item["type"] == kind for part in item["content"]]
        return "".join(part["text"] for part in parts)

    calls = [item for item in items if item["type"] == "function_call"]
    return Answer(
        text("message"),
        text("reasoning"),
        tuple((call["name"], json.loads(call["arguments"])) for call in calls),
        body["status"],
        usage["input_tokens"],
        usage["output_tokens"],
        usage["output_tokens_details"]["reasoning_tokens"],
    )


def block(part: Json) -> Json:
    match part["type"]:
        case "image_url":
            data = data_of(part["image_url"]["url"])
            source = {"type": "base64", "media_type": "image/png", "data": data}
            return {"type": "image", "source": source}
        case "file":
            file = part["file"]
            media_type, data = "application/pdf", file["file_data"]
            if data.startswith("data:"):
                media_type = data[len("data:") :].partition(";")[0]
                data = data_of(data)
            source = {"type": "base64", "media_type": media_type, "data": data}
            return {"type": "document", "source": source, "title": file.get("filename")}
        case _:
            return part


def blocks(message: Json) -> list[Json]:
    """The content of a chat message."""
    content = message.get("content") or []
    if isinstance(content, list):
        content = [block(part) for part in content]
    if message["role"] == "tool":
        id = message["tool_call_id"]
        return [{"type": "tool_result", "tool_use_id": id, "content": content}]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    thinking = message.get("reasoning_content")
    calls = message.get("tool_calls", ())
    functions = [(call["id"], call["function"]) for call in calls]
    return [
        *([{"type": "thinking", "thinking": thinking, "signature": ""}] if thinking else []),
        *content,
        *(
            {"type": "tool_use", "id": id, "name": f["name"], "input": json.loads(f["arguments"])}
            for id, f in functions
        ),
    ]


def messages_request(chat: Json) -> Json:
    body, turns = dict(chat), list[Json]()
    for message in chat["messages"]:
        if message["role"] == "system":
            text = {"type": "text", "text": message["content"]}
            body["system"] = [{**text, "cache_control": {"type": "ephemeral"}}]
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks(message)
        else:
            turns.append({"role": role, "content": blocks(message)})
    body["messages"] = turns
    if "tools" in body:
        functions = [tool["function"] for tool in body["tools"]]
        body["tools"] = [{"name": f["name"], "input_schema": f["parameters"]} for f in functions]
    parallel = body.pop("parallel_tool_calls", True)
    if "tool_choice" in body:
        choice = body["tool_choice"]
        if isinstance(choice, dict):
            body["tool_choice"] = {"type": "tool", **choice["function"]}
        else:
            body["tool_choice"] = {"type": "any" if choice == "required" else choice}
        if not parallel:
            body["tool_choice"]["disable_parallel_tool_use"] = True
    if "stop" in body:
        body["stop_sequences"] = body.pop("stop")
    if "response_format" in body:
        form = body.pop("response_format")
        schema = form["json_schema"]["schema"]
        body["output_config"] = {"format": {"type": form["type"], "schema": schema}}
    if "thinking_token_budget" in body:
        budget = body.pop("thinking_token_budget")
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    if body.pop("reasoning_effort", None) == "none":
        body["thinking"] = {"type": "disabled"}
    for name in ("continue_final_message", "add_generation_prompt"):  # a last turn of the assistant
        body.pop(name, None)
    return body


def messages_joined(text: str) -> Json:
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


def messages_answer(body: Json) -> Answer:
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


@dataclass(frozen=True)
class Dialect:
    """An API. `reasons`: its reasons to stop by chat's; `failure`: in its last event after a failure; `count`: the
    path that counts a prompt's tokens."""

    path: str
    write: Callable[[Json], Json]
    streaming: Json
    joined: Callable[[str], Json]
    read: Callable[[Json], Answer]
    reasons: dict[str, str]
    failure: Json
    count: str | None = None

    def answer(self, http: httpx2.Client, chat: Json) -> Answer:
        """The answer to a chat request."""
        return self.read(self.body(http, chat))

    def body(self, http: httpx2.Client, chat: Json) -> Json:
        return posted(http, self.path, self.write(chat)).json()

    def streamed(self, http: httpx2.Client, chat: Json) -> Answer:
        """The same from a stream."""
        return self.read(self.joined(self.stream(http, chat)))

    def stream(self, http: httpx2.Client, chat: Json) -> str:
        return posted(http, self.path, {**self.write(chat), **self.streaming}).text


def posted(http: httpx2.Client, path: str, body: Json) -> httpx2.Response:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply


SAME_REASONS = {reason: reason for reason in ("stop", "length", "tool_calls")}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
DIALECTS = {
    "chat": Dialect(
        "/v1/chat/completions",
        dict,
        USAGE,
        chat_joined,
        chat_answer,
        SAME_REASONS,
        {"error": {"type": "server_error"}},
    ),
    "completions": Dialect(
        "/v1/completions",
        completions_request,
        USAGE,
        completions_joined,
        completions_answer,
        SAME_REASONS,
        {"error": {"type": "server_error"}},
    ),
    "responses": Dialect(
        "/v1/responses",
        responses_request,
        {"stream": True},
        responses_joined,
        responses_answer,
        {"stop": "completed", "tool_calls": "completed", "length": "incomplete"},
        {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
        "/v1/responses/input_tokens",
    ),
    "messages": Dialect(
        "/v1/messages",
        messages_request,
        {"stream": True},
        messages_joined,
        messages_answer,
        {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"},
        {"type": "error", "error": {"type": "api_error"}},
        "/v1/messages/count_tokens",
    ),
}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = DIALECTS.values()


@dataclass(frozen=True)
class Case:
    """Fields of a chat request, and the dialects that have them. `text` is what the model writes (None: its own)."""

    fields: Json
    dialects: str = "chat responses messages"
    text: str | None = None

    @property
    def request(self) -> Json:
        return {"messages": HI, "max_tokens": 24 if self.text is None else 200, **self.fields}


HISTORY: list[Json] = [
    {"role": "user", "content": "1 + 2"},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "I call."}],
        "reasoning_content": "hm",
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
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "20"}]},
]
FINAL = [*HI, {"role": "assistant", "content": "I"}]
ONE_OF = {"name": "x", "schema": {"enum": ["Rome", "Oslo"]}}
THOUGHTS = "<think>one and two and three</think>four"
ALL = "chat completions responses messages"
CASES = {
    "one token": Case({"max_tokens": 1}, ALL),
    "five tokens": Case({"max_tokens": 5}, ALL),
    "text": Case({}),
    "stop token": Case({"logit_bias": {"7": 100}, "stop_token_ids": [7], "min_tokens": 3}),
    "choice": Case({"structured_outputs": {"choice": ["Rome", "Oslo"]}}),
    "system": Case({"messages": [{"role": "system", "content": "be brief"}, *HI]}),
    "image": Case(
        {"messages": [{"role": "user", "content": [IMAGE, QUESTION]}]}, "chat responses messages"
    ),
    "image and audio": Case(
        {"messages": [{"role": "user", "content": [IMAGE, AUDIO, QUESTION]}]}, "chat responses"
    ),
    "history": Case({"messages": HISTORY, "tools": TOOLS}),
    "calls": Case({"tools": TOOLS}, text=f"<think>one</think>So: {CALLS}"),
    "one call": Case(
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}, text=CALLS
    ),
    "named call": Case({"tools": TOOLS, "tool_choice": WEATHER}, text=CALLS),
    "schema": Case({"response_format": {"type": "json_schema", "json_schema": ONE_OF}}),
    "reasoning budget": Case({"thinking_token_budget": 12}, "chat messages", THOUGHTS),
    "no reasoning": Case({"reasoning_effort": "none"}, "chat messages", THOUGHTS),
    "final message": Case(
        {"messages": FINAL, "continue_final_message": True, "add_generation_prompt": False},
        "chat messages",
    ),
    "stop sequence": Case({"stop": ["wo"]}, "chat messages", "one two three"),
}
