"""Anthropic's Python client at the Messages API."""

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal

import pytest
from anthropic import Anthropic, AsyncAnthropic, BadRequestError, NotFoundError, beta_tool
from pydantic import BaseModel

SUM: Any = [{"role": "user", "content": "What is 3 + 4?"}]
SEVILLE: Any = [{"role": "user", "content": "What is the weather in Seville on Tuesday?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Seville", "Oslo"]},
            "day": {"enum": ["Monday", "Tuesday"]},
        },
        "required": ["city", "day"],
        "additionalProperties": False,
    },
}


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green", "blue"]
    shape: Literal["circle", "square"]


@pytest.fixture
def client(url: str) -> Anthropic:
    return Anthropic(base_url=url, api_key="none", max_retries=0)


@pytest.fixture
def options(model: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": 100}


def prompt_tokens(message: Any) -> int:
    """The tokens of a message's prompt; Anthropic counts those of a cached prefix separately."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_message(client: Anthropic, post: Any, options: Any) -> None:
    expected = post("/v1/chat/completions", {"messages": SUM})
    message = client.messages.create(**options, messages=SUM)
    assert message.content[0].text == expected["choices"][0]["message"]["content"]
    assert message.stop_reason == "end_turn"
    assert prompt_tokens(message) == expected["usage"]["prompt_tokens"]
    assert message.usage.output_tokens == expected["usage"]["completion_tokens"]
    count = client.messages.count_tokens(model=options["model"], messages=SUM)
    assert count.input_tokens == prompt_tokens(message)


def test_stream(client: Anthropic, options: Any) -> None:
    whole = client.messages.create(**options, system="Be brief.", messages=SUM)
    with client.messages.stream(**options, system="Be brief.", messages=SUM) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.model_dump() == whole.usage.model_dump()
    events = list(client.messages.create(**options, messages=SUM, stream=True))
    assert events[0].type == "message_start" and events[-1].type == "message_stop"


def test_image(client: Anthropic, post: Any, options: Any, media: Any) -> None:
    picture = media["picture.png"]
    data = base64.b64encode(Path(picture["path"]).read_bytes()).decode()
    text = {"type": "text", "text": picture["question"]}
    source = {"type": "base64", "media_type": "image/png", "data": data}
    message = client.messages.create(
        **options,
        messages=[{"role": "user", "content": [{"type": "image", "source": source}, text]}],
    )
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    body = {"messages": [{"role": "user", "content": [part, text]}]}
    expected = post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert message.content[0].text == expected


def test_tools_and_the_result(client: Anthropic, options: Any) -> None:
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    call: Any = {"tools": [WEATHER], "tool_choice": choice, "messages": SEVILLE}
    message = client.messages.create(**options, **call)
    (block,) = message.content
    assert message.stop_reason == "tool_use" and block.input["city"] in ("Seville", "Oslo")
    with client.messages.stream(**options, **call) as stream:
        assert stream.get_final_message().content[0].input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "20 C"}
    turns = [
        *SEVILLE,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(**options, tools=[WEATHER], messages=turns)
    assert prompt_tokens(answer) > prompt_tokens(message)
    assert answer.stop_reason in ("end_turn", "tool_use", "max_tokens") and answer.content


def test_tool_runner(client: Anthropic, options: Any) -> None:
    """The client's loop calls the function and sends its result, in the beta API."""
    calls = []

    @beta_tool
    def get_weather(city: Literal["Seville", "Oslo"], day: Literal["Monday", "Tuesday"]) -> str:
        """Weather in a city"""
        calls.append((city, day))
        return "20 C"

    runner = client.beta.messages.tool_runner(
        **options,
        tools=[get_weather],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=SEVILLE,
        max_iterations=2,
    )
    first, second = runner
    assert first.stop_reason == second.stop_reason == "tool_use"
    assert (first.content[0].input["city"], first.content[0].input["day"]) == calls[0]
    assert prompt_tokens(second) > prompt_tokens(first)


def test_parse(client: Anthropic, options: Any) -> None:
    message = client.messages.parse(**options, messages=SUM, output_format=Color)
    assert isinstance(message.parsed_output, Color)
    with client.messages.stream(**options, messages=SUM, output_format=Color) as stream:
        assert stream.get_final_message().parsed_output == message.parsed_output


def test_async(url: str, client: Anthropic, options: Any) -> None:
    async def texts() -> list[str]:
        async with AsyncAnthropic(base_url=url, auth_token="none") as own:

            async def text(question: str) -> str:
                messages: Any = [{"role": "user", "content": question}]
                async with own.messages.stream(**options, messages=messages) as stream:
                    return "".join([delta async for delta in stream.text_stream])

            return list(await asyncio.gather(text("What is 3 + 4?"), text("What is 5 + 2?")))

    expected = client.messages.create(**options, messages=SUM).content[0].text
    assert asyncio.run(texts())[0] == expected


def test_models_and_errors(client: Anthropic, options: Any) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.messages.create(**{**options, "model": "claude"}, messages=SUM)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(BadRequestError) as long:
        client.messages.create(**{**options, "max_tokens": 20_000}, messages=SUM)
    assert long.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(BadRequestError):
        client.messages.create(
            **options, messages=SUM, tools=[{"type": "web_search_20250305", "name": "web_search"}]
        )
