"""Agno: agents with its model of OpenAI-compatible servers."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.knowledge.embedder.openai_like import OpenAILikeEmbedder
from agno.media import Audio, Image
from agno.models.openai import OpenAIChat, OpenAIResponses
from agno.models.openai.like import OpenAILike
from agno.tools import tool
from pydantic import BaseModel

SUM = "What is 3 + 4?"
MODELS = pytest.mark.parametrize("api", [OpenAILike, OpenAIChat, OpenAIResponses])


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture
def options(log: Any, model: str) -> dict[str, Any]:
    return {"id": model, "base_url": f"{log.url}/v1", "api_key": "none"}


@MODELS
def test_agent_and_stream(api: Any, options: Any, post: Any) -> None:
    agent = Agent(model=api(**options), telemetry=False)
    expected = post("/v1/chat/completions", {"messages": [{"role": "user", "content": SUM}]})
    result = agent.run(SUM)
    assert result.content == expected["choices"][0]["message"]["content"]
    assert result.metrics.input_tokens == expected["usage"]["prompt_tokens"]
    assert "".join(event.content or "" for event in agent.run(SUM, stream=True)) == result.content


def test_instructions_and_history(options: Any, log: Any) -> None:
    """Instructions are a system message of OpenAILike."""
    memory: Any = {"db": InMemoryDb(), "add_history_to_context": True, "session_id": "one"}
    agent = Agent(model=OpenAILike(**options), instructions="Be brief.", telemetry=False, **memory)
    first = agent.run(SUM).content
    assert agent.run("What is 5 + 2?").content == log.text()
    roles = [(m["role"], m["content"]) for m in log.bodies[1]["messages"]]
    assert roles[0] == ("system", "Be brief.") and ("assistant", first) in roles


@MODELS
def test_tool_and_its_result(api: Any, options: Any, log: Any) -> None:
    """The call is forced in a first run, and its result is in the second."""

    @tool(stop_after_tool_call=True)
    def get_weather(city: Literal["Seville", "Oslo"]) -> str:
        """Weather in a city"""
        return f"20 C in {city}"

    memory: Any = {"db": InMemoryDb(), "add_history_to_context": True, "session_id": "one"}
    agent = Agent(model=api(**options), tools=[get_weather], telemetry=False, **memory)
    agent.tool_choice = "required"
    first = agent.run("What is the weather in Seville?")
    (call,) = first.tools
    assert call.tool_name == "get_weather" and call.result.startswith("20 C in ")
    agent.tool_choice = "none"
    agent.run("Thanks")
    assert len(log.bodies) == 2 and call.result in str(log.bodies[1])


@MODELS
def test_output_schema(api: Any, options: Any) -> None:
    agent = Agent(model=api(**options), output_schema=Color, telemetry=False)
    assert isinstance(agent.run(SUM).content, Color)


def test_image_and_audio(options: Any, log: Any, media: Any) -> None:
    agent = Agent(model=OpenAILike(**options), telemetry=False)
    picture, recording = media["picture.png"], media["recording.wav"]
    image = Image(content=Path(picture["path"]).read_bytes())
    assert agent.run(picture["question"], images=[image]).content == log.text()
    audio = Audio(content=Path(recording["path"]).read_bytes(), format="wav")
    assert agent.run(recording["question"], audio=[audio]).content == log.text()


def test_async(options: Any, log: Any) -> None:
    agent = Agent(model=OpenAILike(**options), telemetry=False)
    assert asyncio.run(agent.arun(SUM)).content == log.text()


def test_embedder(options: Any) -> None:
    embedder = OpenAILikeEmbedder(**options, dimensions=None)
    assert len(embedder.get_embedding("a cat")) > 1
