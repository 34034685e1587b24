"""Semantic Kernel: its chat completion with plug-ins, agents, and the other services of OpenAI's API."""

import asyncio
from typing import Annotated, Any, Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIAudioToText,
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextEmbedding,
)
from semantic_kernel.contents import (
    AudioContent,
    ChatHistory,
    ChatMessageContent,
    ImageContent,
    TextContent,
)
from semantic_kernel.functions import kernel_function

SUM = "What is 3 + 4?"


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


class Weather:
    def __init__(self) -> None:
        self.cities: list[str] = []

    @kernel_function(description="Weather in a city")
    def get_weather(self, city: Annotated[str, "Name of the city"]) -> str:
        self.cities.append(city)
        return f"20 C in {city}"


@pytest.fixture
def client(log: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{log.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def phi(client: AsyncOpenAI, model: str) -> OpenAIChatCompletion:
    return OpenAIChatCompletion(ai_model_id=model, async_client=client)


def test_chat_and_stream(phi: OpenAIChatCompletion, log: Any) -> None:
    history, settings = ChatHistory(system_message="Be brief."), OpenAIChatPromptExecutionSettings()
    history.add_user_message(SUM)

    async def read() -> tuple[str, str]:
        whole = await phi.get_chat_message_content(history, settings)
        stream = phi.get_streaming_chat_message_content(history, settings)
        return str(whole), "".join([str(chunk) async for chunk in stream])

    whole, streamed = asyncio.run(read())
    assert whole == streamed == log.text()


def test_prompt_function(phi: OpenAIChatCompletion, log: Any) -> None:
    kernel = Kernel()
    kernel.add_service(phi)
    result = asyncio.run(kernel.invoke_prompt("What is {{$a}} + 4?", a="3"))
    assert str(result) == log.text()


def test_plugin(phi: OpenAIChatCompletion, log: Any) -> None:
    """The kernel calls the required function, and asks once more without functions."""
    kernel, weather = Kernel(), Weather()
    kernel.add_plugin(weather, "weather")
    history = ChatHistory()
    history.add_user_message("What is the weather in Seville?")
    behavior = FunctionChoiceBehavior.Required()
    settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=behavior, max_tokens=300)
    answer = asyncio.run(phi.get_chat_message_content(history, settings, kernel=kernel))
    assert len(weather.cities) == 1 and len(log.bodies) == 2
    assert log.bodies[1]["messages"][-1]["content"] == f"20 C in {weather.cities[0]}"
    assert answer is not None


def test_structured_output(phi: OpenAIChatCompletion) -> None:
    history, settings = ChatHistory(), OpenAIChatPromptExecutionSettings(response_format=Color)
    history.add_user_message(SUM)
    answer = asyncio.run(phi.get_chat_message_content(history, settings))
    assert Color.model_validate_json(str(answer))


def test_image(phi: OpenAIChatCompletion, log: Any, media: Any) -> None:
    picture = media["picture.png"]
    image = ImageContent.from_image_path(picture["path"])
    items: Any = [TextContent(text=picture["question"]), image]
    history = ChatHistory(messages=[ChatMessageContent(role="user", items=items)])
    settings = OpenAIChatPromptExecutionSettings()
    assert str(asyncio.run(phi.get_chat_message_content(history, settings))) == log.text()


def test_agent(phi: OpenAIChatCompletion, log: Any) -> None:
    agent = ChatCompletionAgent(service=phi, instructions="Be brief.")
    assert str(asyncio.run(agent.get_response(SUM))) == log.text()


def test_transcription(client: AsyncOpenAI, model: str, media: Any) -> None:
    service = OpenAIAudioToText(ai_model_id=model, async_client=client)
    audio = AudioContent.from_audio_file(media["recording.wav"]["path"])
    assert asyncio.run(service.get_text_content(audio)).text


def test_embeddings(client: AsyncOpenAI, model: str) -> None:
    service = OpenAITextEmbedding(ai_model_id=model, async_client=client)
    cat, dog = asyncio.run(service.generate_embeddings(["a cat", "a dog"]))
    assert len(cat) == len(dog)
