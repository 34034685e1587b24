"""The Messages API through Anthropic's client: answers, streams, tools, tokens and error classes."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from fixtures.chats import BOTH_CALLS, CALLS, Model
from fixtures.servers import Running, serving
from pydantic import BaseModel
from serve.openai.test_streaming import BLOCK_TOOLS as FUNCTIONS
from serve.openai.test_streaming import HI, URL

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings

KEY = "the-only-key"


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, Settings("tiny", keys=(KEY,), reasoning=True)) as server:
        yield server
        assert not engine.counters().requests


@pytest.fixture
def client(running: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key=KEY, max_retries=0) as client:
        yield client


OPTIONS: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "extra_body": {"temperature": 0.1}}


def test_text_and_thinking(model: Model, client: anthropic.Anthropic) -> None:
    model.text = "<think>one</think>two three"
    message = client.messages.create(messages=HI, **OPTIONS)
    thinking, text = message.content
    assert (thinking.thinking, text.text, message.stop_reason) == ("one", "two three", "end_turn")
    with client.messages.stream(messages=HI, **OPTIONS) as stream:
        deltas = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert deltas == "two three"
    assert [block.model_dump() for block in final.content] == [
        block.model_dump() for block in message.content
    ]
    assert final.usage.output_tokens == message.usage.output_tokens
    # The client sends the blocks back.
    turns = [*HI, {"role": "assistant", "content": message.content}, *HI]
    plain = [*HI, {"role": "assistant", "content": "two three"}, *HI]
    counts = {
        client.messages.count_tokens(model="tiny", messages=m).input_tokens for m in (turns, plain)
    }
    assert len(counts) == 1
    stopped = client.messages.create(messages=HI, stop_sequences=["three"], **OPTIONS)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")


def test_tools(model: Model, client: anthropic.Anthropic) -> None:
    model.text = CALLS
    message = client.messages.create(messages=HI, tools=FUNCTIONS, **OPTIONS)
    assert message.stop_reason == "tool_use"
    calls = [(block.name, block.input) for block in message.content]
    assert calls == [(name, json.loads(arguments)) for name, arguments in BOTH_CALLS]
    with client.messages.stream(messages=HI, tools=FUNCTIONS, **OPTIONS) as stream:
        final = stream.get_final_message()
    assert [(block.name, block.input) for block in final.content] == calls
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "20"}
        for block in message.content
    ]
    model.text = "Done."
    turns = [*HI, {"role": "assistant", "content": message.content}]
    turns.append({"role": "user", "content": results})
    answer = client.messages.create(messages=turns, tools=FUNCTIONS, **OPTIONS)
    assert answer.content[0].text == "Done."


def test_a_tool_runner_continues_without_threads(
    model: Model,
    client: anthropic.Anthropic,
) -> None:
    """Its first request asks for a thread; the error makes it send the conversation without one."""
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.messages.create(messages=HI, thread={"type": "create"}, **OPTIONS)
    error = caught.value.body["error"]
    assert error["param"] == "thread"
    assert error["details"]["error_code"] == "thread_unsupported_request"

    @anthropic.beta_tool
    def temperature(city: str) -> str:
        """The temperature of a city."""
        return "20"

    model.text = "Done."
    runner = client.beta.messages.tool_runner(messages=HI, tools=[temperature], **OPTIONS)
    (message,) = runner
    assert message.content[0].text == "Done."


class Town(BaseModel):
    city: str


def test_a_format(model: Model, client: anthropic.Anthropic) -> None:
    model.text = '{"city": "Oslo"}'
    parsed = client.messages.parse(messages=HI, output_format=Town, **OPTIONS)
    assert parsed.parsed_output == Town(city="Oslo")


def test_an_image(client: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]}
    turns: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    message = client.messages.create(model="tiny", max_tokens=2, messages=turns)
    count = client.messages.count_tokens(model="tiny", messages=turns)
    text = client.messages.count_tokens(model="tiny", messages=HI)
    assert message.usage.input_tokens == count.input_tokens > text.input_tokens
    assert message.model_extra["adapter"] == "vision"


def test_errors(running: Running, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="tiny", max_tokens=5000, messages=HI)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=1, messages=HI)
    stranger = anthropic.Anthropic(base_url=running.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", max_tokens=1, messages=HI)
    bearer = anthropic.Anthropic(base_url=running.url, auth_token=KEY, max_retries=0)
    assert bearer.messages.create(model="tiny", max_tokens=1, messages=HI).usage.output_tokens == 1


def test_the_list_of_models_has_anthropics_form(client: anthropic.Anthropic) -> None:
    """The client reads page after page."""
    assert [one.id for one in client.models.list(limit=1)] == ["tiny", "vision", "speech"]
    page = client.models.list(limit=2)
    assert (page.first_id, page.last_id, page.has_more) == ("tiny", "vision", True)
    before = client.models.list(before_id="speech", limit=1)
    assert [one.id for one in before.data] == ["vision"] and before.has_more
    one = client.models.retrieve("vision")
    assert (one.type, one.id, one.display_name) == ("model", "vision", "vision")
    assert one.created_at.year >= 2026
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("mini")
    with pytest.raises(anthropic.NotFoundError):
        client.models.list(after_id="mini")


def test_cached_tokens_are_counted_apart(client: anthropic.Anthropic) -> None:
    long = [{"role": "user", "content": "the quick brown fox " * 40}]
    first, second = (client.messages.create(messages=long, **OPTIONS).usage for _ in range(2))
    assert first.cache_read_input_tokens == 0 < second.cache_read_input_tokens
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens
