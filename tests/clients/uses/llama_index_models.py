"""LlamaIndex: OpenAILike by chat and by completions, its Responses model, agents, and a vector index."""

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import AudioBlock, ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SUM = "What is 3 + 4?"
SEVILLE = "What is the weather in Seville on Tuesday?"


class Color(BaseModel, extra="forbid"):
    """A color."""

    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture
def options(log: Any, model: str) -> dict[str, Any]:
    return {"model": model, "api_base": f"{log.url}/v1", "api_key": "none", "temperature": 0}


@pytest.fixture
def phi(options: Any) -> OpenAILike:
    return OpenAILike(**options, is_chat_model=True, is_function_calling_model=True)


def test_chat_and_stream(phi: OpenAILike, log: Any) -> None:
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage(SUM)]
    text = phi.chat(messages).message.content
    assert text == log.text()
    assert "".join(chunk.delta for chunk in phi.stream_chat(messages)) == text
    assert phi.complete(SUM).text == log.text()


def test_async(phi: OpenAILike, log: Any) -> None:
    async def read() -> tuple[str, str]:
        stream = await phi.astream_complete(SUM)
        streamed = "".join([chunk.delta async for chunk in stream])
        return streamed, (await phi.acomplete(SUM)).text

    streamed, text = asyncio.run(read())
    assert streamed == text == log.text()


def test_completions(options: Any, log: Any) -> None:
    """The default of OpenAILike."""
    phi = OpenAILike(**options, max_tokens=5)
    text = phi.complete("3 + 4 =").text
    assert log.requests[0][0] == "/v1/completions" and text
    assert "".join(chunk.delta for chunk in phi.stream_complete("3 + 4 =")) == text


def test_responses(options: Any, phi: OpenAILike) -> None:
    responses = OpenAIResponses(**options, context_window=4000)
    text = responses.complete(SUM).text
    assert text == phi.complete(SUM).text
    assert "".join(c.delta or "" for c in responses.stream_chat([ChatMessage(SUM)])) == text


def get_weather(city: Literal["Seville", "Oslo"]) -> str:
    """Weather in a city"""
    return f"20 C in {city}"


def test_tool_and_its_result(phi: OpenAILike) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    answer = phi.chat_with_tools([tool], user_msg=SEVILLE, tool_required=True)
    (call,) = phi.get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] in ("Seville", "Oslo")
    stream = phi.stream_chat_with_tools([tool], user_msg=SEVILLE, tool_required=True)
    *_, last = stream
    assert phi.get_tool_calls_from_response(last)[0].tool_kwargs == call.tool_kwargs
    options = {"tool_call_id": call.tool_id}
    result = ChatMessage(get_weather(**call.tool_kwargs), role="tool", additional_kwargs=options)
    final = phi.chat_with_tools([tool], chat_history=[ChatMessage(SEVILLE), answer.message, result])
    assert final.raw.usage.prompt_tokens > answer.raw.usage.prompt_tokens


def test_structured_prediction(phi: OpenAILike) -> None:
    """By a tool that has to be called."""
    assert isinstance(phi.as_structured_llm(Color).complete(SUM).raw, Color)


def test_structured_output_by_a_schema(options: Any, log: Any) -> None:
    phi = OpenAILike(**options, is_chat_model=True, should_use_structured_outputs=True)
    assert isinstance(phi.as_structured_llm(Color).complete(SUM).raw, Color)
    assert log.bodies[-1]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("name", "block"), [("picture.png", ImageBlock), ("recording.wav", AudioBlock)]
)
def test_media(phi: OpenAILike, log: Any, media: Any, name: str, block: Any) -> None:
    path = Path(media[name]["path"])
    blocks = [block(path=path), TextBlock(text=media[name]["question"])]
    assert phi.chat([ChatMessage(blocks=blocks)]).message.content == log.text()
    assert base64.b64encode(path.read_bytes()).decode()[:400] in str(log.bodies[0])


def test_agent(phi: OpenAILike, log: Any) -> None:
    phi.max_tokens = 60
    agent = FunctionAgent(tools=[get_weather], llm=phi, system_prompt="Be brief.")

    async def run() -> Any:
        return await agent.run(SUM)

    asyncio.run(run())
    assert log.bodies[0]["tools"] and log.bodies[0]["stream"] is True


def test_vector_index(phi: OpenAILike, options: Any) -> None:
    embeddings = OpenAILikeEmbedding(options["model"], api_base=options["api_base"], max_retries=0)
    documents = [Document(text="Seville is warm."), Document(text="Oslo is cold.")]
    index = VectorStoreIndex.from_documents(documents, embed_model=embeddings)
    answer = index.as_query_engine(llm=phi).query("Is Oslo cold?")
    assert len(answer.source_nodes) == 2
