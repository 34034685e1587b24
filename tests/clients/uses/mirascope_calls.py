"""Mirascope: calls as functions, by chat completions, by responses and by Anthropic's API."""

import asyncio
from typing import Any, Literal

import pytest
from mirascope import llm
from pydantic import BaseModel

SUM = "What is 3 + 4?"


class Color(BaseModel, extra="forbid"):
    """A color."""

    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture
def phi(log: Any, model: str, request: pytest.FixtureRequest) -> Any:
    """Mirascope's model id, and its provider is registered with the server's address."""
    provider, _, suffix = getattr(request, "param", "openai:completions").partition(":")
    base_url = log.url if provider == "anthropic" else f"{log.url}/v1"
    llm.register_provider(provider, scope=f"{provider}/", base_url=base_url, api_key="none")
    yield f"{provider}/{model}" + (suffix and f":{suffix}")
    llm.reset_provider_registry()


EACH_API = pytest.mark.parametrize(
    "phi", ["openai:completions", "openai:responses", "anthropic"], indirect=True
)


@EACH_API
def test_call_and_stream(phi: str, post: Any) -> None:
    @llm.call(phi, max_tokens=100)
    def ask() -> str:
        return SUM

    expected = post("/v1/chat/completions", {"messages": [{"role": "user", "content": SUM}]})
    response = ask()
    assert response.text() == expected["choices"][0]["message"]["content"]
    assert response.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert "".join(ask.stream().text_stream()).strip() == response.text()


@llm.tool
def get_weather(city: Literal["Seville", "Oslo"]) -> str:
    """Weather in a city"""
    return f"20 C in {city}"


@EACH_API
def test_tools(phi: str, log: Any) -> None:
    """Mirascope leaves the choice of a tool to the model."""

    @llm.call(phi, tools=[get_weather], max_tokens=100)
    def ask() -> str:
        return "What is the weather in Seville?"

    response = ask()
    assert log.bodies[0]["tools"]
    if response.tool_calls and {call.name for call in response.tool_calls} == {"get_weather"}:
        assert response.resume(response.execute_tools()) and len(log.bodies) == 2


@EACH_API
@pytest.mark.parametrize("mode", ["default", "strict", "tool"])
def test_format(phi: str, mode: Any) -> None:
    output = Color if mode == "default" else llm.format(Color, mode=mode)

    @llm.call(phi, format=output, max_tokens=100)
    def ask() -> str:
        return SUM

    assert isinstance(ask().parse(), Color)


@pytest.mark.skip(
    reason="its mode json has the schema in the prompt only, and nano doesn't follow it"
)
def test_format_by_the_prompt() -> None: ...


@EACH_API
def test_image(phi: str, media: Any) -> None:
    picture = media["picture.png"]

    @llm.call(phi, max_tokens=100)
    def look() -> list[Any]:
        return [picture["question"], llm.Image.from_file(picture["path"])]

    assert look().text()


def test_audio(phi: str, log: Any, media: Any) -> None:
    recording = media["recording.wav"]

    @llm.call(phi)
    def listen() -> list[Any]:
        return [recording["question"], llm.Audio.from_file(recording["path"])]

    assert listen().text() == log.text()


def test_async(phi: str, log: Any) -> None:
    @llm.call(phi)
    async def ask() -> str:
        return SUM

    assert asyncio.run(ask()).text() == log.text()
