"""Other uses of OpenAI's Python client: concurrent requests, cancelled tasks, helpers for streams, tools and structured
output, and error classes."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    LengthFinishReasonError,
    NotFoundError,
    OpenAI,
    pydantic_function_tool,
)
from pydantic import BaseModel, ConfigDict

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.types.messages import Message, with_tools
from polyphi.types.parts import Calls, Text
from polyphi.types.tools import call_text
from tests.fixtures.chats import CONTENTS
from tests.fixtures.servers import Running, serving, until_true

FOX: list[Any] = [{"role": "user", "content": "the quick fox"}]


class Weather(BaseModel):
    """How warm it is in a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    celsius: bool


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def several(running: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_many_at_once_get_what_each_gets_alone(running: Running) -> None:
    """Text, image, audio and both, streamed and not, in one batch of the engine."""

    async def ask(client: AsyncOpenAI, content: Any, stream: bool) -> str:
        params: Any = {"messages": [{"role": "user", "content": content}], "max_tokens": 10}
        if not stream:
            answer = await client.chat.completions.create(model="tiny", **params)
            return answer.choices[0].message.content or ""
        pieces = await client.chat.completions.create(model="tiny", stream=True, **params)
        return "".join([c.choices[0].delta.content or "" async for c in pieces])

    async def all_of_them() -> tuple[list[str], list[str]]:
        async with several(running) as client:
            jobs = [(c, stream) for c in CONTENTS.values() for stream in (False, True)]
            alone = [await ask(client, *job) for job in jobs]
            return alone, await asyncio.gather(*(ask(client, *job) for job in jobs))

    alone, batched = asyncio.run(all_of_them())
    assert batched == alone and len(set(alone)) == len(CONTENTS)
    assert running.idle()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_cancelled_task_frees_what_it_held(fresh: Running, stream: bool) -> None:
    """The client stays open: only the task's connection closes."""
    counters = fresh.engine.counters

    async def read(client: AsyncOpenAI) -> None:
        params: Any = {"model": "tiny", "messages": FOX, "max_tokens": 1900}
        answer = await client.chat.completions.create(**params, stream=stream)
        if stream:
            async with answer:
                async for _ in answer:
                    pass

    async def cancelled() -> None:
        async with several(fresh) as client:
            task = asyncio.create_task(read(client))
            await until_true(lambda: counters().blocks_in_use > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_true(fresh.idle)
            again = await client.chat.completions.create(model="tiny", messages=FOX, max_tokens=2)
            assert again.usage is not None and again.usage.completion_tokens == 2

    asyncio.run(cancelled())
    with fresh.client() as http:
        metrics = http.get("/metrics").text
    # It ended because of that, not because the answer was complete.
    assert 'request_success_total{finished_reason="abort",model_name="tiny"} 1.0' in metrics


def test_parse_gives_an_object_of_the_asked_class(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=FOX, response_format=Weather, max_tokens=400
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Weather) and parsed.city in ("Rome", "Oslo")
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(
            model="tiny", messages=FOX, response_format=Weather, max_tokens=3
        )


def test_the_stream_helper_tells_events(client: OpenAI) -> None:
    params: Any = {"model": "tiny", "messages": FOX, "max_tokens": 8}
    text = client.chat.completions.create(**params).choices[0].message.content
    with client.chat.completions.stream(**params, logprobs=True) as stream:
        events = list(stream)
        final = stream.current_completion_snapshot  # the helper raises for answers of "length"
    deltas = [e for e in events if e.type == "content.delta"]
    assert "".join(e.delta for e in deltas) == deltas[-1].snapshot == text
    assert [e.content for e in events if e.type == "content.done"] == [text]
    assert final.choices[0].message.content == text
    assert len(final.choices[0].logprobs.content) == 8
    with client.chat.completions.stream(
        model="tiny", messages=FOX, response_format=Weather, max_tokens=400
    ) as stream:
        (done,) = [e for e in stream if e.type == "content.done"]
    assert isinstance(done.parsed, Weather)


def test_a_loop_of_tools_with_a_real_function(running: Running, client: OpenAI) -> None:
    def weather(city: str, celsius: bool) -> str:
        degrees = {"Rome": 20, "Oslo": 4}[city]
        return f"{degrees} C" if celsius else f"{degrees * 9 // 5 + 32} F"

    messages: list[Any] = [{"role": "user", "content": "How warm is it?"}]
    tool: Any = pydantic_function_tool(Weather, name="weather")
    params: Any = {"model": "tiny", "tools": [tool], "max_tokens": 600}
    with client.chat.completions.stream(
        **params, messages=messages, tool_choice="required", seed=3
    ) as stream:
        called = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls" and called
    messages.append(choice.message.model_dump(exclude_none=True))
    for event, call in zip(called, choice.message.tool_calls or (), strict=True):
        arguments = call.function.parsed_arguments
        assert isinstance(arguments, Weather) and event.parsed_arguments == arguments
        result = weather(**arguments.model_dump())
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    final = client.chat.completions.create(**{**params, "max_tokens": 4}, messages=messages)
    ours = running.engine.processor.count(conversation(choice.message, messages, tool))
    assert final.usage is not None and final.usage.prompt_tokens == ours.total
    assert final.choices[0].finish_reason == "length"


def conversation(message: Any, messages: list[Any], tool: Any) -> tuple[Message, ...]:
    """The same conversation as `Message`s: the client returns exactly the model's output."""
    calls = [
        {"name": c.function.name, "arguments": c.function.arguments} for c in message.tool_calls
    ]
    turns = [
        Message.user(messages[0]["content"]),
        Message("assistant", (Calls(call_text(calls)),)),
        *(Message("tool_response", (Text(m["content"]),)) for m in messages[2:]),
    ]
    return tuple(with_tools(turns, [tool["function"]]))


def test_models_by_name(client: OpenAI) -> None:
    for name in ("tiny", "vision", "speech"):
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "polyphi")
        assert model.model_extra["max_model_len"] == 2048
    assert client.models.retrieve("vision").model_extra["parent"] == "tiny"
    for strange in ("mini", "org/gpt-4", "../tiny"):
        with pytest.raises(NotFoundError) as caught:
            client.models.retrieve(strange)
        assert caught.value.code == "model_not_found", strange


HI = [{"role": "user", "content": "hi"}]
KNOWN = ("gpt-4o", "gpt-4o-mini-transcribe", "whisper-1", "o3", "claude-sonnet-4-5-20250929")


def test_known_names_on_this_machine_are_the_model(running: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=HI, max_tokens=2)
    assert answer.model == "tiny", "the answer names the model that gave it"
    for name in KNOWN:
        assert client.models.retrieve(name).model_extra["root"] == "tiny"
    assert "gpt-4o" not in {model.id for model in client.models.list()}


def test_known_names_are_off_where_others_reach_the_server(engine: Engine) -> None:
    away = Settings("tiny", host="0.0.0.0", keys=("key",))
    for settings, expected in (
        (Settings("tiny", known_names=False), 404),
        (away, 404),
        (replace(away, known_names=True), 200),
    ):
        with serving(engine, settings) as running, running.client("key") as client:
            for name in KNOWN[:2]:
                reply = client.get(f"/v1/models/{name}")
                assert reply.status_code == expected
                assert expected == 200 or "--known-names" in reply.json()["error"]["message"]


def test_errors_are_of_their_class(engine: Engine) -> None:
    with serving(engine, Settings("tiny", keys=("right",))) as running:

        def client(key: str) -> OpenAI:
            return OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)

        params: Any = {"model": "tiny", "messages": FOX, "max_tokens": 2}
        for stream in (False, True):
            with pytest.raises(AuthenticationError) as refused:
                client("wrong").chat.completions.create(**params, stream=stream)
            assert refused.value.status_code == 401
            assert refused.value.type == "authentication_error" and "right" not in str(
                refused.value
            )
        with pytest.raises(AuthenticationError):
            client("wrong").models.list()
        right = client("right")
        assert right.chat.completions.create(**params).choices
        with pytest.raises(NotFoundError):
            right.moderations.create(model="tiny", input="x")
        with pytest.raises(BadRequestError) as long:
            right.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "fox " * 3000}]
            )
        assert long.value.code == "context_length_exceeded" and long.value.param == "messages"
