"""A server with a real language model: the same answer by every API, and forced calls of tools."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from polyphi.api import Phi
from polyphi.serve.admission.settings import Settings
from tests.fixtures.servers import Running, serving

pytestmark = pytest.mark.long

QUESTION, ANSWER = "What is the capital of Germany?", "The capital of Germany is Berlin."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather in a city", "parameters": CITY},
}


@pytest.fixture(scope="module")
def running(phi: Phi) -> Iterator[Running]:
    with serving(phi.engine, Settings("smollm2")) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        yield client


def test_every_api_gives_the_answer(running: Running, client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=0)
    assert chat.choices[0].message.content == ANSWER and chat.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    response = client.responses.create(model="smollm2", input=QUESTION, temperature=0)
    assert response.output_text == ANSWER
    again = client.responses.create(
        model="smollm2",
        input="What country is it in?",
        previous_response_id=response.id,
        temperature=0,
    )
    assert "Germany" in again.output_text
    with anthropic.Anthropic(base_url=running.url, api_key="none") as messages:
        message = messages.messages.create(
            model="smollm2", max_tokens=32, messages=MESSAGES, extra_body={"temperature": 0}
        )
    assert getattr(message.content[0], "text", None) == ANSWER
    assert message.stop_reason == "end_turn"
    text = client.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=4
    )
    assert "Paris" in text.choices[0].text
    assert next(iter(client.models.list())).id == "smollm2"


def test_an_answer_is_continued(client: openai.OpenAI) -> None:
    messages: Any = [*MESSAGES, {"role": "assistant", "content": "The capital of Germany is"}]
    chat = client.chat.completions.create(
        model="smollm2",
        messages=messages,
        temperature=0,
        max_tokens=8,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert chat.choices[0].message.content == " Berlin."


def test_a_required_call_has_what_was_asked_for(client: openai.OpenAI) -> None:
    """The form of the call comes from the grammar, its argument from the model; then it reads what the tool returns."""
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    chat = client.chat.completions.create(
        model="smollm2", messages=messages, tools=[TOOL], tool_choice="required", temperature=0
    )
    (call,) = chat.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        chat.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It is sunny, 21 degrees."},
    ]
    last = client.chat.completions.create(model="smollm2", messages=messages, temperature=0)
    assert "sunny" in (last.choices[0].message.content or "")
