"""AutoGen: its client of OpenAI-compatible servers, agents, and a team."""

import asyncio
from typing import Any, Literal

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, MultiModalMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import Image
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from PIL import Image as Pillow
from pydantic import BaseModel

SUM = UserMessage(content="What is 3 + 4?", source="user")
SEVILLE = UserMessage(content="What is the weather in Seville on Tuesday?", source="user")
ABILITIES: Any = {
    "vision": True,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


def get_weather(city: Literal["Seville", "Oslo"]) -> str:
    """Weather in a city"""
    return f"20 C in {city}"


@pytest.fixture
def phi(log: Any, model: str) -> OpenAIChatCompletionClient:
    options: Any = {"base_url": f"{log.url}/v1", "api_key": "none", "max_retries": 0}
    return OpenAIChatCompletionClient(model=model, model_info=ABILITIES, **options)


def test_create_and_stream(phi: Any, log: Any, post: Any) -> None:
    messages = [SystemMessage(content="Be brief."), SUM]

    async def read() -> tuple[Any, list[Any]]:
        whole = await phi.create(messages)
        options = {"stream_options": {"include_usage": True}}
        stream = phi.create_stream(messages, extra_create_args=options)
        return whole, [chunk async for chunk in stream]

    whole, [*deltas, last] = asyncio.run(read())
    assert whole.content == log.text() == "".join(deltas) == last.content
    assert last.usage == whole.usage and whole.usage.prompt_tokens > 0


def test_tool_and_its_result(phi: Any) -> None:
    tool = FunctionTool(get_weather, description="Weather in a city")

    async def run() -> tuple[Any, Any]:
        first = await phi.create([SEVILLE], tools=[tool], tool_choice=tool)
        (call,) = first.content
        result = FunctionExecutionResult(
            content="20 C", call_id=call.id, name=call.name, is_error=False
        )
        turns = [
            SEVILLE,
            AssistantMessage(content=first.content, source="phi"),
            FunctionExecutionResultMessage(content=[result]),
        ]
        return first, await phi.create(turns, tools=[tool])

    first, second = asyncio.run(run())
    assert first.finish_reason == "function_calls" and first.content[0].name == "get_weather"
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_structured_output(phi: Any) -> None:
    result = asyncio.run(phi.create([SUM], json_output=Color))
    assert Color.model_validate_json(result.content)


def test_agent_and_its_stream(phi: Any, log: Any) -> None:
    agent = AssistantAgent("tutor", phi, model_client_stream=True)

    async def read() -> list[Any]:
        return [message async for message in agent.run_stream(task=SUM.content)]

    messages = asyncio.run(read())
    chunks = [m.content for m in messages if isinstance(m, ModelClientStreamingChunkEvent)]
    assert messages[-1].messages[-1].content == "".join(chunks) == log.text()


def test_agent_with_tools_and_a_picture(phi: Any, log: Any, media: Any) -> None:
    picture = media["picture.png"]
    agent = AssistantAgent("eye", phi, tools=[get_weather])
    image = Image(Pillow.open(picture["path"]))
    task = MultiModalMessage(content=[picture["question"], image], source="user")
    result = asyncio.run(agent.run(task=task))
    types = [part["type"] for part in log.bodies[0]["messages"][-1]["content"]]
    assert types == ["text", "image_url"] and log.bodies[0]["tools"]
    assert result.messages[-1].content is not None


def test_team(phi: Any, log: Any) -> None:
    agents: Any = [AssistantAgent("one", phi), AssistantAgent("two", phi)]
    team = RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(3))
    result = asyncio.run(team.run(task=SUM.content))
    assert [message.source for message in result.messages] == ["user", "one", "two"]
    assert result.messages[-1].content == log.text()
