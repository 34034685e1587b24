"""Pydantic AI: agents with tools and typed output, by chat completions and by responses."""

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryContent,
    NativeOutput,
    RunContext,
    ToolDefinition,
    ToolOutput,
)
from pydantic_ai.capabilities import PrepareOutputTools, PrepareTools
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

CHAT = "/v1/chat/completions"
SUM = "What is 3 + 4?"
SEVILLE = "What is the weather in Seville on Tuesday?"
APIS = pytest.mark.parametrize(
    "api", [OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"]
)


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green", "blue"]
    shape: Literal["circle", "square"]


@pytest.fixture
def provider(url: str) -> OpenAIProvider:
    return OpenAIProvider(base_url=f"{url}/v1", api_key="none")


def body(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@APIS
def test_run(api: Any, provider: OpenAIProvider, model: str, post: Any) -> None:
    agent = Agent(api(model, provider=provider))
    expected = post(CHAT, body(SUM))
    result = agent.run_sync(SUM)
    assert result.output == expected["choices"][0]["message"]["content"]
    usage = result.usage
    assert usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert usage.output_tokens == expected["usage"]["completion_tokens"]


@APIS
def test_stream(api: Any, provider: OpenAIProvider, model: str, post: Any) -> None:
    agent = Agent(api(model, provider=provider))

    async def text() -> tuple[str, int]:
        async with agent.run_stream(SUM) as result:
            deltas = [delta async for delta in result.stream_text(delta=True)]
            usage = result.usage
            return "".join(deltas), usage.output_tokens

    expected = post(CHAT, body(SUM))
    text_, tokens = asyncio.run(text())
    assert text_ == expected["choices"][0]["message"]["content"]
    assert tokens == expected["usage"]["completion_tokens"]


@APIS
@pytest.mark.parametrize(
    "output", [Color, ToolOutput(Color), NativeOutput(Color)], ids=["default", "tool", "native"]
)
def test_output_type(api: Any, provider: OpenAIProvider, model: str, output: Any) -> None:
    """Without a wrapper the output is a tool."""
    agent = Agent(api(model, provider=provider), output_type=output, retries=0)
    assert isinstance(agent.run_sync(SUM).output, Color)


@APIS
def test_output_of_a_stream(api: Any, provider: OpenAIProvider, model: str) -> None:
    agent = Agent(api(model, provider=provider), output_type=NativeOutput(Color), retries=0)

    async def outputs() -> list[Color]:
        async with agent.run_stream(SUM) as result:
            return [output async for output in result.stream_output()]

    assert asyncio.run(outputs())[-1] == agent.run_sync(SUM).output


@APIS
def test_tool(api: Any, provider: OpenAIProvider, model: str) -> None:
    """The first step has the function as its only tool, the second one the output."""
    agent = Agent(
        api(model, provider=provider),
        output_type=Color,
        capabilities=[PrepareTools(at_first), PrepareOutputTools(later)],
        model_settings={"parallel_tool_calls": False, "max_tokens": 200},
    )
    calls = []

    @agent.tool_plain
    def get_weather(city: Literal["Seville", "Oslo"], day: Literal["Monday", "Tuesday"]) -> str:
        """Weather in a city"""
        calls.append({"city": city, "day": day})
        return "20 C"

    result = agent.run_sync(SEVILLE)
    parts = [p for m in result.all_messages() for p in m.parts]
    first, second = [p for p in parts if isinstance(p, ToolCallPart)]
    assert calls == [first.args_as_dict()] and first.tool_name == "get_weather"
    assert "20 C" in [p.content for p in parts if isinstance(p, ToolReturnPart)]
    assert second.args_as_dict() == result.output.model_dump()


async def at_first(context: RunContext, tools: list[ToolDefinition]) -> list[ToolDefinition]:
    return tools if context.run_step == 1 else []


async def later(context: RunContext, tools: list[ToolDefinition]) -> list[ToolDefinition]:
    return tools if context.run_step > 1 else []


@APIS
def test_a_conversation(api: Any, provider: OpenAIProvider, model: str, post: Any) -> None:
    agent = Agent(api(model, provider=provider))
    first = agent.run_sync(SUM)
    second = agent.run_sync("What is 5 + 4?", message_history=first.all_messages())
    messages = [
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": first.output},
        {"role": "user", "content": "What is 5 + 4?"},
    ]
    expected = post(CHAT, {"messages": messages})["choices"][0]["message"]["content"]
    assert second.output == expected


def test_image_and_audio(provider: OpenAIProvider, model: str, post: Any, media: Any) -> None:
    agent = Agent(OpenAIChatModel(model, provider=provider))
    for name, type_ in (("picture.png", "image/png"), ("recording.wav", "audio/wav")):
        data, question = Path(media[name]["path"]).read_bytes(), media[name]["question"]
        encoded = base64.b64encode(data).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
        audio = {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
        text = {"type": "text", "text": question}
        content = [text, image if name == "picture.png" else audio]
        expected = post(CHAT, body(content))["choices"][0]["message"]["content"]
        result = agent.run_sync([question, BinaryContent(data, media_type=type_)])
        assert result.output == expected


@APIS
def test_errors(api: Any, provider: OpenAIProvider, model: str) -> None:
    with pytest.raises(ModelHTTPError) as missing:
        Agent(api("no-such-model", provider=provider)).run_sync(SUM)
    assert missing.value.status_code == 404
    with pytest.raises(ModelHTTPError) as long:
        Agent(api(model, provider=provider)).run_sync("fox " * 20000)
    assert long.value.status_code == 400
