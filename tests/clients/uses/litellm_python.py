"""LiteLLM's functions with the provider of OpenAI-compatible servers."""

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel

SUM: Any = [{"role": "user", "content": "What is 3 + 4?"}]
SEVILLE: Any = [{"role": "user", "content": "What is the weather in Seville on Tuesday?"}]
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Seville", "Oslo"]},
                "day": {"enum": ["Monday", "Tuesday"]},
            },
            "required": ["city", "day"],
            "additionalProperties": False,
        },
    },
}


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green", "blue"]
    shape: Literal["circle", "square"]


class Weather(BaseModel):
    city: Literal["Seville", "Oslo"]
    day: Literal["Monday", "Tuesday"]


@pytest.fixture
def options(url: str, model: str) -> dict[str, Any]:
    return {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}


def encoded(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def test_completion(options: Any, post: Any) -> None:
    expected = post(CHAT, {"messages": SUM})
    answer = litellm.completion(**options, messages=SUM)
    assert answer.choices[0].message.content == expected["choices"][0]["message"]["content"]
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == expected["usage"]["completion_tokens"]


def test_streaming_with_usage(options: Any, post: Any) -> None:
    expected = post(CHAT, {"messages": SUM})
    stream = litellm.completion(
        **options, messages=SUM, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected["choices"][0]["message"]["content"]
    usage = litellm.stream_chunk_builder(chunks, messages=SUM).usage
    assert usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert usage.completion_tokens == expected["usage"]["completion_tokens"]


def test_acompletion_of_several(options: Any, post: Any) -> None:
    questions = [f"What is {n} + 4?" for n in range(4)]

    async def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        stream = await litellm.acompletion(**options, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def answers() -> list[str]:
        return list(await asyncio.gather(*map(answer, questions)))

    for question, text in zip(questions, asyncio.run(answers()), strict=True):
        body = {"messages": [{"role": "user", "content": question}]}
        assert post(CHAT, body)["choices"][0]["message"]["content"] == text


def test_image_and_audio(options: Any, post: Any, media: Any) -> None:
    picture, recording = media["picture.png"], media["recording.wav"]
    image = {"url": f"data:image/png;base64,{encoded(picture['path'])}"}
    audio = {"data": encoded(recording["path"]), "format": "wav"}
    for part, question in (
        ({"type": "image_url", "image_url": image}, picture["question"]),
        ({"type": "input_audio", "input_audio": audio}, recording["question"]),
    ):
        messages = [{"role": "user", "content": [{"type": "text", "text": question}, part]}]
        answer = litellm.completion(**options, messages=messages)
        expected = post(CHAT, {"messages": messages})["choices"][0]["message"]["content"]
        assert answer.choices[0].message.content == expected


def test_tools_and_the_result(options: Any) -> None:
    tools = {**options, "tools": [WEATHER]}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    message = litellm.completion(**tools, messages=SEVILLE, tool_choice=choice).choices[0].message
    (call,) = message.tool_calls
    Weather.model_validate_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "20 C"}
    answer = litellm.completion(**tools, messages=[*SEVILLE, message, result])
    assert answer.choices[0].finish_reason in ("stop", "tool_calls")
    chunks = list(litellm.completion(**tools, messages=SEVILLE, tool_choice=choice, stream=True))
    streamed = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert [c.function.arguments for c in streamed] == [call.function.arguments]


def test_response_format_of_a_class(options: Any) -> None:
    answer = litellm.completion(**options, messages=SUM, response_format=Color)
    assert Color.model_validate_json(answer.choices[0].message.content)


def test_responses(options: Any, post: Any) -> None:
    expected = post(CHAT, {"messages": SUM})
    response = litellm.responses(**options, input="What is 3 + 4?")
    text = expected["choices"][0]["message"]["content"]
    assert response.output[0].content[0].text == text
    assert response.usage.input_tokens == expected["usage"]["prompt_tokens"]
    events = list(litellm.responses(**options, input="What is 3 + 4?", stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text
    second = litellm.responses(**options, input="And 5?", previous_response_id=response.id)
    assert second.usage.input_tokens > response.usage.input_tokens


def test_anthropic_messages(options: Any, post: Any) -> None:
    """The Messages API in front of any provider."""
    expected = post(CHAT, {"messages": SUM})["choices"][0]["message"]["content"]

    async def message() -> Any:
        return await litellm.anthropic.messages.acreate(**options, max_tokens=50, messages=SUM)

    assert asyncio.run(message())["content"][0]["text"] == expected


def test_transcription(options: Any, url: str, media: Any) -> None:
    with open(media["recording.wav"]["path"], "rb") as file:
        answer = litellm.transcription(**options, file=file)
        file.seek(0)
        verbose = litellm.transcription(**options, file=file, response_format="verbose_json")
    assert answer.text and verbose.text == answer.text and verbose.segments


def test_router(options: Any, post: Any) -> None:
    router = litellm.Router([{"model_name": "small", "litellm_params": options}])
    expected = post(CHAT, {"messages": SUM})["choices"][0]["message"]["content"]
    assert router.completion("small", SUM).choices[0].message.content == expected


def test_errors(options: Any) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**options, "model": "openai/no-such-model"}, messages=SUM)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**options, messages=[{"role": "user", "content": "fox " * 20000}])
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**options, messages=SUM, extra_body={"top_kk": 5})
