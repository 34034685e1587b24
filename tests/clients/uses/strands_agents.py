"""Strands Agents with its models of OpenAI's chat completions and responses."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from strands import Agent, tool
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel

SUM = "What is 3 + 4?"
APIS = pytest.mark.parametrize(
    "api", [OpenAIModel, OpenAIResponsesModel], ids=["chat", "responses"]
)


class Color(BaseModel, extra="forbid"):
    """A color."""

    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture
def options(log: Any, model: str) -> dict[str, Any]:
    client = {"base_url": f"{log.url}/v1", "api_key": "none", "max_retries": 0}
    return {"client_args": client, "model_id": model}


@APIS
def test_agent(api: Any, options: Any, post: Any) -> None:
    agent = Agent(api(**options), system_prompt="Be brief.", callback_handler=None)
    result = agent(SUM)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SUM}]
    expected = post("/v1/chat/completions", {"messages": messages})
    assert str(result).strip() == expected["choices"][0]["message"]["content"]
    assert result.metrics.accumulated_usage["inputTokens"] == expected["usage"]["prompt_tokens"]


def test_stream(options: Any, log: Any) -> None:
    agent = Agent(OpenAIModel(**options), callback_handler=None)

    async def read() -> list[str]:
        return [event["data"] async for event in agent.stream_async(SUM) if "data" in event]

    assert "".join(asyncio.run(read())) == log.text()


@APIS
def test_tool_and_its_result(api: Any, options: Any, log: Any) -> None:
    """The call is forced in the first request, as nano doesn't decide."""
    cities: list[str] = []

    @tool
    def get_weather(city: Literal["Seville", "Oslo"]) -> str:
        """Weather in a city

        Args:
            city: Name of the city
        """
        cities.append(city)
        phi.update_config(params={"tool_choice": "none"})
        return f"20 C in {city}"

    phi = api(**options, params={"tool_choice": "required"})
    Agent(phi, tools=[get_weather], callback_handler=None)("What is the weather in Seville?")
    assert len(cities) == 1 and len(log.bodies) == 2
    assert f"20 C in {cities[0]}" in str(log.bodies[1])


@APIS
def test_structured_output(api: Any, options: Any) -> None:
    agent = Agent(api(**options), callback_handler=None)
    assert isinstance(agent(SUM, structured_output_model=Color).structured_output, Color)


@APIS
def test_image(api: Any, options: Any, media: Any, post: Any) -> None:
    picture = media["picture.png"]
    image = {"format": "png", "source": {"bytes": Path(picture["path"]).read_bytes()}}
    agent = Agent(api(**options), callback_handler=None)
    result = agent([{"text": picture["question"]}, {"image": image}])
    assert len(str(result).strip()) > 0
