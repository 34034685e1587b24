"""Outlines with its models of OpenAI's API and of vLLM's."""

import asyncio
from typing import Any, Literal

import openai
import outlines
import pytest
from outlines.inputs import Chat, Image
from PIL import Image as Pillow
from pydantic import BaseModel

SUM = "What is 3 + 4?"


class Color(BaseModel, extra="forbid"):
    color: Literal["red", "green"]
    shape: Literal["circle", "square"]


@pytest.fixture(params=[outlines.from_openai, outlines.from_vllm], ids=["openai", "vllm"])
def phi(request: pytest.FixtureRequest, log: Any, model: str) -> Any:
    client = openai.OpenAI(base_url=f"{log.url}/v1", max_retries=0)
    return request.param(client, model)


def test_text_and_stream(phi: Any, log: Any) -> None:
    text = phi(SUM)
    assert text == log.text()
    assert "".join(phi.stream(SUM)) == text


def test_chat(phi: Any, log: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert phi(Chat([system, {"role": "user", "content": SUM}])) == log.text()


def test_schema(phi: Any, log: Any) -> None:
    text = phi(SUM, Color)
    assert Color.model_validate_json(text) and text == log.text()
    assert "".join(phi.stream(SUM, Color)) == text


@pytest.mark.parametrize("phi", [outlines.from_openai], indirect=True)
def test_any_json(phi: Any, log: Any) -> None:
    text = phi(SUM, dict, max_tokens=20)
    assert text.startswith("{") and text == log.text()


@pytest.mark.parametrize("phi", [outlines.from_vllm], indirect=True)
def test_choice_regex_and_grammar(phi: Any) -> None:
    assert phi(SUM, Literal["seven", "eight"]) in ("seven", "eight")
    assert len(phi(SUM, outlines.regex(r"[0-9]{3}"))) == 3
    grammar = 'start: "yes" | "no"'
    assert phi(SUM, outlines.cfg(grammar)) in ("yes", "no")


def test_image(phi: Any, log: Any, media: Any) -> None:
    picture = media["picture.png"]
    image = Image(Pillow.open(picture["path"]))
    assert phi([picture["question"], image]) == log.text()


def test_async(model: str, log: Any) -> None:
    phi = outlines.from_openai(openai.AsyncOpenAI(base_url=f"{log.url}/v1"), model)

    async def read() -> tuple[str, str]:
        return await phi(SUM), "".join([delta async for delta in phi.stream(SUM)])

    text, streamed = asyncio.run(read())
    assert text == streamed == log.text()
