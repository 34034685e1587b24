"""Errors name the invalid part of a request by the client's path, independent of unions in the schema."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from polyphi.serve.anthropic.schema import CountTokensRequest, MessagesRequest
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import validation_error
from polyphi.serve.openai.responses_schema import ResponsesRequest
from polyphi.serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from tests.core.serve.test_walk import ODD, ODDER, SIMPLE, places, put, rich

MODELS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
}


def error_of(model: type[BaseModel], body: Any) -> ApiError | None:
    """The error that a client receives for a body; None if the body is valid."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        return validation_error(RequestValidationError(errors, body=body))
    return None


def chat(**fields: Any) -> tuple[type[BaseModel], Any]:
    return ChatRequest, {"messages": [{"role": "user", "content": "hi"}], **fields}


def content(value: Any) -> tuple[type[BaseModel], Any]:
    return chat(messages=[{"role": "user", "content": value}])


def schema(value: Any) -> tuple[type[BaseModel], Any]:
    return chat(response_format={"type": "json_schema", "json_schema": {"schema": value}})


def prompt(value: Any) -> tuple[type[BaseModel], Any]:
    return CompletionRequest, {"prompt": value}


NAMED = {"type": "function", "function": {"name": "f"}}
HERE, SCHEMA = "messages[0].content", "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (content({}), HERE),
        (content({"str": 1}), HERE),
        (content(5), HERE),
        (content([5]), f"{HERE}[0]"),
        (content([{"type": "x"}]), f"{HERE}[0]"),
        (content([{"type": "text"}]), f"{HERE}[0].text"),
        (content([{"type": "text", "text": {"text": 1}}]), f"{HERE}[0].text"),
        (content([{"type": "text", "text": "a", "txt": 1}]), f"{HERE}[0].txt"),
        (content([{"type": "image_url", "image_url": "x"}]), f"{HERE}[0].image_url"),
        (
            content([{"type": "image_url", "image_url": {"image_url": "x"}}]),
            f"{HERE}[0].image_url.image_url",
        ),
        (content([{"type": "text", "text": "a"}, {"type": "refusal"}]), f"{HERE}[1].refusal"),
        (
            content([{"type": "video_url", "video_url": {"url": "a", "frames": 0}}]),
            f"{HERE}[0].video_url.frames",
        ),
        (chat(stop={}), "stop"),
        (chat(stop={"str": 1}), "stop"),
        (chat(stop=["a", 5]), "stop[1]"),
        (chat(tool_choice={}), "tool_choice.type"),
        (chat(tool_choice=[1]), "tool_choice"),
        (chat(tool_choice="x"), "tool_choice"),
        (chat(tool_choice={**NAMED, "NamedTool": 1}), "tool_choice.NamedTool"),
        (chat(tool_choice={"type": "function", "function": 5}), "tool_choice.function"),
        (
            chat(tool_choice={"type": "function", "function": {"name": "f", "x": 1}}),
            "tool_choice.function.x",
        ),
        (schema(5), SCHEMA),
        (schema([1]), SCHEMA),
        (prompt({}), "prompt"),
        (prompt(None), "prompt"),
        (prompt(["a", 5]), "prompt[1]"),
        (prompt([1, "a"]), "prompt[1]"),
        (prompt([[1], "a"]), "prompt[1]"),
        (prompt([[1], [2, "a"]]), "prompt[1][1]"),
        (prompt([{}]), "prompt[0]"),
        (content([{"type": "x" * 99}]), f"{HERE}[0]"),
        (content([{"text": "hi"}]), f"{HERE}[0]"),
        ((ResponsesRequest, {"input": [{"type": "computer_call"}]}), "input[0]"),
    ],
)
def test_an_error_in_a_union_names_the_clients_path(
    request_: tuple[type[BaseModel], Any], param: str
) -> None:
    error = error_of(*request_)
    assert error is not None and error.param == param and error.message.startswith(f"{param}: ")
    assert not re.search(
        r"constrained|list\[|function-|literal\[|NamedTool:|tag|discriminator|instance of",
        error.message.removeprefix(param),
    )


def steps(param: str) -> list[str | int]:
    return [int(i) if i else name for i, name in re.findall(r"\[(\d+)\]|([^.\[\]]+)", param)]


def exists(body: Any, path: list[str | int]) -> bool:
    for step in path:
        try:
            body = body[step]
        except (TypeError, KeyError, IndexError):
            return False
    return True


def test_every_path_of_an_error_stands_in_the_body() -> None:
    """Except for the last name of a path, which may be missing."""
    count = 0
    for path, body in [*SIMPLE, *rich()]:
        for at in places(body):
            for odd in [*ODD, *ODDER]:
                sent = put(body, at, odd)
                error = error_of(MODELS[path], sent)
                if error is None or error.param is None:
                    continue
                count += 1
                *above, last = steps(error.param)
                assert exists(sent, above), (error.param, sent)
                missing = "required" in error.message
                assert missing or exists(sent, [*above, last]), (error.param, sent)
    assert count > 1000


def unions(schema: Any) -> Iterator[list[Any]]:
    """The members of all unions without discriminator in a JSON schema, except null."""
    if isinstance(schema, dict):
        if "anyOf" in schema:
            yield [member for member in schema["anyOf"] if member != {"type": "null"}]
        for value in schema.values():
            yield from unions(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from unions(value)


@pytest.mark.parametrize("model", MODELS.values())
def test_every_union_chooses_its_member_by_the_value(model: type[BaseModel]) -> None:
    """Without one, an error lists all members, with their names in the path."""
    members = list(unions(model.model_json_schema()))
    assert members and all(len(some) == 1 for some in members)
