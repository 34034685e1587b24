"""Reasoning in chat completions: a field of its own in messages and deltas, counted, and limited."""

from typing import Any

import pytest
from openai import OpenAI

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.core.serve.dialects import CHAT, HI, chat_events
from tests.fixtures.chats import BOTH_CALLS, CALLS, SCHEMA, TOOLS, Model, outcome
from tests.fixtures.servers import Running, serving
from tests.fixtures.variants import few


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings("tiny", reasoning=True)


def answers(running: Running, **fields: Any) -> dict[str, Any]:
    """The choice and the usage; the joined deltas of a stream are the same."""
    body = {"messages": HI, "max_tokens": 300, "seed": 1, "temperature": 0.1, **fields}
    with running.client() as client:
        whole, chunks = CHAT.body(client, body), chat_events(CHAT.stream(client, body))
    (choice,), usage = whole["choices"], whole["usage"]
    joined = {"content": "", "reasoning_content": "", "reasoning": ""}
    for delta in [c["delta"] for chunk in chunks for c in chunk["choices"]]:
        for name in joined:
            joined[name] += delta.get(name) or ""
    message = choice["message"]
    assert joined == {name: message.get(name) or "" for name in joined}
    assert message.get("reasoning") == message.get("reasoning_content")
    details = chunks[-1]["usage"]["completion_tokens_details"]
    assert details == usage["completion_tokens_details"]
    return {**choice, "usage": usage}


def test_reasoning_is_apart_from_content(model: Model) -> None:
    model.text = "<think>\none and two\n</think>\n\nthree"
    choice = answers(model.running)
    assert choice["message"]["content"] == "three" and choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"] == "one and two"
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] > 10
    model.text = "<think>one and two"
    choice = answers(model.running, max_tokens=15)
    assert choice["message"]["content"] is None and choice["finish_reason"] == "length"
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": 15}
    model.text = "no <think>one</think>"
    choice = answers(model.running)
    assert choice["message"]["content"] == model.text
    assert "reasoning_content" not in choice["message"]
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_calls_after_reasoning(model: Model) -> None:
    model.text = f"<think>{CALLS}</think>So: {CALLS}</think>"
    choice = answers(model.running, tools=TOOLS)
    assert outcome(choice) == ("So: </think>", BOTH_CALLS, "tool_calls")
    first = answers(model.running, tools=TOOLS, parallel_tool_calls=False)
    assert outcome(first) == ("So: ", BOTH_CALLS[:1], "tool_calls")
    # A grammar applies from the first token on.
    model.text = '{"city": "Oslo"}'
    choice = answers(model.running, response_format=SCHEMA, reasoning_effort="none")
    assert choice["message"]["content"] == model.text


@pytest.mark.parametrize(
    "fields",
    few(
        [
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"thinking_token_budget": 0},
            {"chat_template_kwargs": {"thinking": False}},
            {"chat_template_kwargs": {"thinking_budget": 0}},
            {"chat_template_kwargs": {"reasoning_effort": "none"}},
        ],
        2,
    ),
)
def test_no_reasoning(model: Model, fields: dict[str, Any]) -> None:
    model.text = "<think>one and two and three and four and five and six"
    assert answers(model.running)["message"]["content"] is None
    message = answers(model.running, **fields)["message"]
    assert "reasoning_content" not in message and message["content"].endswith("and six")
    model.text = "three"
    assert answers(model.running, **fields)["message"]["content"] == "three"


def test_a_response_takes_the_variables_of_reasoning_templates(model: Model) -> None:
    model.text = "<think>one and two</think>three"
    body = {"input": "hi", "max_output_tokens": 300, "seed": 1, "temperature": 0.1}

    def answer(**variables: Any) -> dict[str, Any]:
        with model.running.client() as client:
            sent = {**body, "chat_template_kwargs": variables}
            return client.post("/v1/responses", json=sent).json()

    def kinds(response: dict[str, Any]) -> list[str]:
        return [item["type"] for item in response["output"]]

    assert kinds(answer(enable_thinking=True)) == ["reasoning", "message"]
    assert kinds(answer(enable_thinking=False)) == ["message"]
    field = "chat_template_kwargs.continue_final_message"
    assert answer(continue_final_message=True)["error"]["param"] == field


def test_the_client_sends_a_message_back(model: Model) -> None:
    """Its reasoning isn't part of the next prompt."""
    model.text = "<think>one and two</think>three"
    client = OpenAI(base_url=f"{model.running.url}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(model="tiny", messages=HI, temperature=0.1)
    message = first.choices[0].message
    assert message.model_extra == {"reasoning_content": "one and two", "reasoning": "one and two"}
    plain = {"role": "assistant", "content": "three"}
    counts = {
        client.chat.completions.create(
            model="tiny", messages=[*HI, sent, *HI], temperature=0.1
        ).usage.prompt_tokens
        for sent in (message.model_dump(), plain)
    }
    assert len(counts) == 1


def test_a_model_without_reasoning(engine: Engine) -> None:
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        for fields in ({"reasoning_effort": "none"}, {"thinking_token_budget": 5}):
            body = {"messages": HI, "max_tokens": 3, **fields}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.get("/props").json()["reasoning"] is False


def test_reasoning_that_is_not_requested_is_left_out(model: Model) -> None:
    model.text = "<think>one and two</think>three"
    choice = answers(model.running, include_reasoning=False)
    assert choice["message"] == {"role": "assistant", "content": "three", "refusal": None}
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    model.text = "<think>one and two"
    choice = answers(model.running, include_reasoning=False, max_tokens=10)
    assert choice["message"]["content"] == "" and choice["finish_reason"] == "length"
