"""The tables of docs/fields.md: each field is sent to each route, and the tables have all fields of the schemas."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy
import pytest
from anthropic.types import message_create_params as message_params
from openai.types import completion_create_params as completion_params
from openai.types.audio import transcription_create_params as transcription_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from polyphi.serve.anthropic.schema import MessagesRequest
from polyphi.serve.audio.form import TranscriptionForm
from polyphi.serve.http.fields import Fields
from polyphi.serve.openai.responses_schema import ResponsesRequest
from polyphi.serve.openai.schema import ChatRequest, CompletionRequest
from tests.fixtures.audio import audio_file
from tests.fixtures.engines import picture
from tests.fixtures.servers import Running

PAGE = (Path(__file__).parents[4] / "docs/fields.md").read_text()
TOOL = {"type": "function", "function": {"name": "f"}}
FUNCTION = {"type": "function", "name": "f"}
CUSTOM = {"name": "f", "input_schema": {"type": "object"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HI = {"role": "user", "content": "hi"}


def tables(first: str) -> list[dict[str, str]]:
    """The rows of all tables of the page whose first column has this name, as column -> cell without code marks."""
    rows, names = list[dict[str, str]](), list[str]()
    for line in PAGE.splitlines():
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells or set(cells[0]) == {"-"}:
            names = names if cells else []
        elif names:
            values = [cell.replace("\\|", "|") for cell in cells]
            rows.append(dict(zip(names, values, strict=True)))
        elif cells[0] == first:
            names = cells
        else:
            names = ["-"] * len(cells)
    return [row for row in rows if first in row]


class Route(NamedTuple):
    """A column of the table: its path, schema and smallest request, and the fields of the official client."""

    path: str
    schema: type[Fields]
    base: dict[str, Any]
    client: Any


ROUTES = {
    "chat": Route(
        "/v1/chat/completions",
        ChatRequest,
        {"messages": [HI], "max_tokens": 4},
        chat_params.CompletionCreateParamsBase,
    ),
    "completions": Route(
        "/v1/completions",
        CompletionRequest,
        {"prompt": "hi", "max_tokens": 4},
        completion_params.CompletionCreateParamsBase,
    ),
    "responses": Route(
        "/v1/responses",
        ResponsesRequest,
        {"input": "hi", "max_output_tokens": 4},
        response_params.ResponseCreateParamsBase,
    ),
    "messages": Route(
        "/v1/messages",
        MessagesRequest,
        {"messages": [HI], "max_tokens": 4},
        message_params.MessageCreateParamsBase,
    ),
    "transcriptions": Route(
        "/v1/audio/transcriptions",
        TranscriptionForm,
        {},
        transcription_params.TranscriptionCreateParamsBase,
    ),
}
NEEDED: dict[str, dict[str, Any]] = {
    "function_call": {"functions": [{"name": "f"}]},
    "continue_final_message": {"messages": [HI, {"role": "assistant", "content": "a"}]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
    "timestamp_granularities": {"response_format": "verbose_json"},
    "tool_choice": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
}
"""Other fields that a field requires, except in these places:"""
NEEDED_HERE: dict[tuple[str, str], dict[str, Any]] = {
    ("responses", "parallel_tool_calls"): {"tools": [FUNCTION]},
    ("responses", "tool_choice"): {"tools": [FUNCTION]},
    ("responses", "top_logprobs"): {},
    ("messages", "tool_choice"): {"tools": [CUSTOM]},
}
EXAMPLES = {
    ("chat", "logprobs"): True,
    ("responses", "include"): ["message.output_text.logprobs"],
    ("responses", "tools"): [FUNCTION],
    ("messages", "tools"): [CUSTOM],
    ("messages", "tool_choice"): {"type": "auto"},
    ("transcriptions", "response_format"): "verbose_json",
}
"""Examples where a route's values differ from those of the table."""
ROWS = tables("field")


def recording() -> bytes:
    return audio_file(numpy.random.default_rng(0).normal(0, 0.1, 8000).astype("float32"))


def answers(text: str) -> Any:
    """The answers in a response, without ids, its time and its usage."""
    body = json.loads(text)
    if body.get("object") == "response":
        return [item["content"] for item in body["output"]]
    return next(body[name] for name in ("choices", "content", "text") if name in body)


@pytest.fixture
def send(running: Running) -> Callable[[str, dict[str, Any]], tuple[int, str]]:
    def sent(column: str, fields: dict[str, Any]) -> tuple[int, str]:
        route = ROUTES[column]
        with running.client() as client:
            if column != "transcriptions":
                reply = client.post(route.path, json={**route.base, **fields})
                return reply.status_code, reply.text
            data = {
                name: [form_value(item) for item in value]
                if isinstance(value, list)
                else form_value(value)
                for name, value in fields.items()
            }
            reply = client.post(route.path, data=data, files={"file": recording()})
            return reply.status_code, reply.text

    return sent


def form_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("column", ROUTES)
def test_each_cell(column: str, send: Callable[[str, dict[str, Any]], tuple[int, str]]) -> None:
    _, bare = send(column, {})
    wrong = []
    for row in ROWS:
        name, cell = row["field"], row[column]
        value = EXAMPLES.get((column, name), json.loads(row["example"]))
        others = NEEDED_HERE.get((column, name), NEEDED.get(name, {})) if cell == "used" else {}
        if cell == "used" and name == "previous_response_id":
            value = json.loads(bare)["id"]
        status, text = send(column, {**others, name: value})
        if cell == "used":
            right = status == 200
        elif cell == "ignored":
            right = status == 200 and answers(text) == answers(bare)
        else:
            right = status == 400 and json.loads(text)["error"]["param"] == name
        if not right:
            wrong.append(f"{name} {cell}: {status} {text[:200]}")
    assert len(ROWS) > 80 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("column", ROUTES)
def test_the_table_has_the_fields_of_the_schema(column: str) -> None:
    schema = ROUTES[column].schema
    cells = {row["field"]: row[column] for row in ROWS}
    assert len(cells) == len(ROWS), "a field has two rows"
    named = {word: {n for n, cell in cells.items() if cell == word} for word in cells.values()}
    assert set(named) <= {"used", "ignored", "refused", "-"}
    known = {field.alias or name for name, field in schema.model_fields.items()}
    known -= set(schema.refused)  # of other routes
    if column == "transcriptions":  # it is read for a warning
        named["ignored"].remove("prompt")
        named["used"].add("prompt")
    assert named["used"] == known
    assert named["ignored"] == schema.ignored
    assert named["refused"] == set(schema.refused)


@pytest.mark.parametrize("column", ROUTES)
def test_the_table_has_every_field_of_the_official_client(column: str) -> None:
    fields = set(get_type_hints(ROUTES[column].client)) - {"file"}
    cells = {row["field"]: row[column] for row in ROWS}
    assert fields and not {name for name in fields if cells.get(name, "-") == "-"}


def placed(place: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A chat request with fields at a place."""
    assistant = {"role": "assistant", "content": "a"}
    user = {**HI, "content": [{"type": "text", "text": "hi"}]}
    call, tool = dict(CALL), dict(TOOL)
    data = base64.b64encode(picture().source).decode()
    image = {"url": f"data:image/png;base64,{data}"}
    if place == "image":
        user["content"].append({"type": "image_url", "image_url": image})
    file = {"file_data": base64.b64encode(b"hi").decode(), "filename": "a.txt"}
    if place == "file":
        user["content"].append({"type": "file", "file": file})
    target = {
        "file": file,
        "assistant message": assistant,
        "other message": user,
        "part": user["content"][0],
        "image": image,
        "tool": tool,
        "tool call": call,
    }[place]
    target |= fields
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "r", "tool_call_id": "c"}
    return {"messages": [HI, assistant, HI, called, result, user], "tools": [tool]}


def test_fields_of_messages(send: Callable[[str, dict[str, Any]], tuple[int, str]]) -> None:
    rows, wrong = tables("place"), []
    for row in rows:
        fields = {row["field"]: json.loads(row["example"])}
        _, bare = send("chat", placed(row["place"], {}))
        status, text = send("chat", placed(row["place"], fields))
        if row["effect"] == "refused":
            param = json.loads(text)["error"]["param"] if status == 400 else ""
            right = param.rpartition(".")[2] == row["field"]
        else:
            same = status == 200 and answers(text) == answers(bare)
            right = status == 200 and same == (row["effect"] == "ignored")
        if not right:
            wrong.append(f"{row}: {status} {text[:200]}")
    assert len(rows) > 15 and not wrong, "\n".join(wrong)


def test_a_null_has_no_effect(send: Callable[[str, dict[str, Any]], tuple[int, str]]) -> None:
    _, bare = send("chat", {})
    names = {row["field"] for row in ROWS} - {"messages", "max_tokens", "speed"}
    status, text = send("chat", dict.fromkeys(names))
    assert status == 200 and answers(text) == answers(bare)
    status, text = send("chat", {"speed": None})  # of messages; it looks like a misspelt `seed`
    assert status == 400 and json.loads(text)["error"]["param"] == "speed"
