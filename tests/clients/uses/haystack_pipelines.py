"""Haystack: its chat generators by chat completions and by responses, an agent, and embedders."""

import asyncio
from typing import Annotated, Any, Literal

import pytest
from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.tools import tool
from haystack.utils import Secret
from pydantic import BaseModel

SUM = "What is 3 + 4?"
SEVILLE = "What is the weather in Seville on Tuesday?"
FORCED = {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@tool
def get_weather(city: Annotated[Literal["Seville", "Oslo"], "Name of the city"]) -> str:
    """Weather in a city"""
    return f"20 C in {city}"


@pytest.fixture
def options(log: Any, model: str) -> dict[str, Any]:
    key = Secret.from_token("none")
    return {"model": model, "api_base_url": f"{log.url}/v1", "api_key": key, "max_retries": 0}


@pytest.mark.parametrize("generator", [OpenAIChatGenerator, OpenAIResponsesChatGenerator])
def test_answer_and_stream(options: Any, post: Any, generator: Any) -> None:
    messages = [ChatMessage.from_system("Be brief."), ChatMessage.from_user(SUM)]
    (reply,) = generator(**options).run(messages)["replies"]
    bodies = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SUM}]
    expected = post("/v1/chat/completions", {"messages": bodies})
    assert reply.text == expected["choices"][0]["message"]["content"]
    chunks: list[Any] = []
    phi = generator(**options, streaming_callback=chunks.append)
    (streamed,) = phi.run(messages)["replies"]
    assert "".join(chunk.content for chunk in chunks) == streamed.text == reply.text


def test_async(options: Any, log: Any) -> None:
    phi = OpenAIChatGenerator(**options)
    result = asyncio.run(phi.run_async([ChatMessage.from_user(SUM)]))
    assert result["replies"][0].text == log.text()


def test_pipeline(options: Any, log: Any) -> None:
    pipeline = Pipeline()
    template = [ChatMessage.from_user("What is {{ a }} + {{ b }}?")]
    pipeline.add_component("prompt", ChatPromptBuilder(template))
    pipeline.add_component("phi", OpenAIChatGenerator(**options))
    pipeline.connect("prompt.prompt", "phi.messages")
    result = pipeline.run({"prompt": {"a": 3, "b": 4}})
    assert result["phi"]["replies"][0].text == log.text()


def test_tool_and_its_result(options: Any) -> None:
    phi = OpenAIChatGenerator(**options, tools=[get_weather])
    question = ChatMessage.from_user(SEVILLE)
    (reply,) = phi.run([question], generation_kwargs=FORCED)["replies"]
    (call,) = reply.tool_calls
    assert call.arguments["city"] in ("Seville", "Oslo")
    chunks: list[Any] = []
    streamed = phi.run([question], chunks.append, generation_kwargs=FORCED)["replies"][0]
    assert streamed.tool_calls[0].arguments == call.arguments
    result = ChatMessage.from_tool(get_weather.invoke(**call.arguments), origin=call)
    (final,) = phi.run([question, reply, result])["replies"]
    assert final.meta["usage"]["prompt_tokens"] > reply.meta["usage"]["prompt_tokens"]


@pytest.mark.parametrize("generator", [OpenAIChatGenerator, OpenAIResponsesChatGenerator])
def test_structured_output(options: Any, generator: Any) -> None:
    field = "response_format" if generator is OpenAIChatGenerator else "text_format"
    phi = generator(**options, generation_kwargs={field: Color})
    (reply,) = phi.run([ChatMessage.from_user(SUM)])["replies"]
    assert Color.model_validate_json(reply.text)


def test_image(options: Any, log: Any, media: Any) -> None:
    picture = media["picture.png"]
    parts = [picture["question"], ImageContent.from_file_path(picture["path"])]
    message = ChatMessage.from_user(content_parts=parts)
    assert OpenAIChatGenerator(**options).run([message])["replies"][0].text == log.text()


def test_agent(options: Any, log: Any) -> None:
    """One forced step, as nano doesn't decide."""
    phi = OpenAIChatGenerator(**options, generation_kwargs=FORCED)
    agent = Agent(chat_generator=phi, tools=[get_weather], max_agent_steps=1)
    result = agent.run(messages=[ChatMessage.from_user(SEVILLE)])
    assert "20 C in" in str(result["messages"]) and log.bodies[0]["tools"]


def test_embedders(options: Any) -> None:
    documents = [Document(content="Seville is warm."), Document(content="Oslo is cold.")]
    embedded = OpenAIDocumentEmbedder(**options).run(documents)["documents"]
    query = OpenAITextEmbedder(**options).run("Is Oslo cold?")["embedding"]
    assert {len(document.embedding) for document in embedded} == {len(query)}
