"""The Messages API through Anthropic's client, and what is Anthropic's in its format. Answers and errors are those of
all APIs: test_dialects.py, test_errors.py."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from pydantic import BaseModel

from polyphi.serve.admission.settings import Settings
from polyphi.types.tools import CALL
from tests.core.serve.dialects import HI, IMAGE, TOOLS, block, messages_joined, messages_request
from tests.fixtures.chats import BOTH_CALLS, CALLS, Model
from tests.fixtures.servers import Running

KEY = "the-only-key"
MESSAGES = "/v1/messages"
FUNCTIONS = messages_request({"messages": [], "tools": TOOLS})["tools"]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings("tiny", keys=(KEY,), reasoning=True)


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client() as client:
        client.headers |= {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
        yield client


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
    turns: Any = [{"role": "user", "content": [block(IMAGE)]}]
    message = client.messages.create(model="tiny", max_tokens=2, messages=turns)
    count = client.messages.count_tokens(model="tiny", messages=turns)
    text = client.messages.count_tokens(model="tiny", messages=HI)
    assert message.usage.input_tokens == count.input_tokens > text.input_tokens
    assert message.model_extra["adapter"] == "vision"


def test_error_classes(running: Running, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="tiny", max_tokens=5000, messages=HI)
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


def comparable(message: dict) -> dict:
    """Without ids and fields that streams have in other events."""
    blocks = [{k: v for k, v in b.items() if k != "id"} for b in message["content"]]
    names = ("type", "role", "model", "stop_reason", "stop_sequence")
    usage = dict(message["usage"])
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    return {"content": blocks, "usage": usage, **{name: message[name] for name in names}}


def test_a_call_that_is_cut_off_has_the_complete_members_of_its_input(
    model: Model,
    http: httpx2.Client,
) -> None:
    model.text = CALLS
    body = {"messages": HI, "tools": FUNCTIONS, "tool_choice": {"type": "any"}}
    body |= {"temperature": 0.1, "seed": 1}
    counts, inputs = set(), []
    for most in range(10, 90, 20):
        message = http.post(MESSAGES, json={**body, "max_tokens": most}).json()
        stream = http.post(MESSAGES, json={**body, "max_tokens": most, "stream": True}).text
        assert comparable(messages_joined(stream)) == comparable(message)
        assert message["stop_reason"] in ("max_tokens", "tool_use")
        for call, (name, arguments) in zip(message["content"], BOTH_CALLS, strict=False):
            assert call["name"] == name
            assert call["input"] in ({}, json.loads(arguments))
        counts.add(len(message["content"]))
        inputs += [block["input"] for block in message["content"]]
    assert {0, 1} <= counts and {} in inputs


def test_numbers_of_a_call_stay_as_the_model_wrote_them(
    model: Model,
    http: httpx2.Client,
) -> None:
    model.text = f'{CALL}[{{"name": "now", "arguments": {{"a": 1e999, "b": "\\ud800"}}}}]'
    body = {"messages": HI, "tools": FUNCTIONS, "temperature": 0.1, "max_tokens": 200}
    reply = http.post(MESSAGES, json=body)
    assert '"input":{"a": 1e999, "b": "\\ud800"}' in reply.text
