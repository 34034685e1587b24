"""magentic: prompts as functions, with its model of OpenAI's API by the environment."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from magentic import (
    AsyncStreamedStr,
    Chat,
    FunctionCall,
    ImageBytes,
    OpenaiChatModel,
    StreamedStr,
    UserMessage,
    chatprompt,
    prompt,
)
from pydantic import BaseModel

SUM = "What is 3 + 4?"


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture(autouse=True)
def environment(log: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGENTIC_OPENAI_BASE_URL", f"{log.url}/v1")
    monkeypatch.setenv("MAGENTIC_OPENAI_MODEL", model)


def test_text_and_stream(log: Any) -> None:
    @prompt(SUM)
    def whole() -> str: ...

    @prompt(SUM)
    def streamed() -> StreamedStr: ...

    @prompt(SUM)
    async def asynchronous() -> AsyncStreamedStr: ...

    async def read() -> str:
        return "".join([piece async for piece in await asynchronous()])

    text = whole()
    assert text == "".join(streamed()) == asyncio.run(read()) == log.text()


def test_object() -> None:
    @prompt("Which color does {thing} have?")
    def color(thing: str) -> Color: ...

    assert isinstance(color("a frog"), Color)


def get_weather(city: Literal["Seville", "Oslo"]) -> str:
    """Weather in a city"""
    return f"20 C in {city}"


def test_function_call_and_its_result(log: Any) -> None:
    """With the return type FunctionCall the call is required."""

    @prompt("What is the weather in {city}?", functions=[get_weather])
    def ask(city: str) -> FunctionCall[str]: ...

    call = ask("Seville")
    assert call().startswith("20 C in ")
    chat: Any = Chat(
        [UserMessage("Weather?")], functions=[get_weather], output_types=[FunctionCall]
    )
    chat = chat.submit().exec_function_call()
    assert chat.last_message.content.startswith("20 C in ")
    answer = Chat([*chat.messages], output_types=[str]).submit().last_message.content
    assert answer == log.text() and log.bodies[-1]["messages"][-1]["role"] == "tool"


def test_picture(log: Any, media: Any) -> None:
    picture = media["picture.png"]
    image = ImageBytes(Path(picture["path"]).read_bytes())

    @chatprompt(UserMessage([picture["question"], image]))
    def look() -> str: ...

    assert look() == log.text()


def test_model_as_an_argument(log: Any, model: str) -> None:
    phi = OpenaiChatModel(model, base_url=f"{log.url}/v1", temperature=0, max_tokens=20, seed=1)

    @prompt(SUM, model=phi)
    def ask() -> str: ...

    assert ask() == log.text()
