"""Chat completions through the official client: the answers are the engine's, streamed or not. Other APIs give the same
answers: test_dialects.py."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi.types.tools import CALL, CALL_END
from tests.fixtures.chats import (
    BOTH_CALLS,
    CALLS,
    CONTENTS,
    NAMED,
    NOW,
    SCHEMA,
    TOOLS,
    WEATHER,
    Model,
    outcome,
)
from tests.fixtures.engines import clip, picture
from tests.fixtures.servers import Running
from tests.fixtures.variants import few


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_answer_is_the_engines(running: Running, client: OpenAI, kind: str) -> None:
    ours = {
        "text": [Message.user("the quick fox")],
        "image": [Message.user("what is this?", picture())],
        "audio": [Message.user(clip(), "say it")],
        "both": [Message.user(picture(), clip())],
    }[kind]
    expected = running.engine.generate(ours, sampling=SamplingParams(max_tokens=12))
    messages = [{"role": "user", "content": CONTENTS[kind]}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.model_extra["adapter"] == expected.adapter
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    details = answer.usage.prompt_tokens_details
    assert details.audio_tokens == expected.audio_tokens
    assert details.model_dump()["image_tokens"] == expected.image_tokens
    pieces = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected.text
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_an_adapter_by_its_name(client: OpenAI) -> None:
    names = [m.id for m in client.models.list()]
    assert names == ["tiny", "vision", "speech"]
    messages = [{"role": "user", "content": "the quick fox"}]
    answer = client.chat.completions.create(model="speech", messages=messages, max_tokens=3)
    assert answer.model_extra["adapter"] == "speech"
    for name in (None, "none"):
        none = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": CONTENTS["image"]}],
            max_tokens=3,
            extra_body={"adapter": name},
        )
        assert none.model_extra["adapter"] is None
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="mini", messages=messages)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_logprobs_and_several_answers(running: Running, client: OpenAI) -> None:
    params = dict(
        model="tiny",
        messages=[{"role": "user", "content": "größer"}],
        max_tokens=8,
        n=3,
        temperature=1.0,
        seed=7,
        logprobs=True,
        top_logprobs=2,
    )
    whole = client.chat.completions.create(**params)
    assert len({c.message.content for c in whole.choices}) > 1
    for choice in whole.choices:
        tokens = choice.logprobs.content
        raw = b"".join(bytes(t.bytes) for t in tokens)
        assert raw.decode(errors="replace") == choice.message.content
        assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in tokens)
    texts, counts = ["", "", ""], [0, 0, 0]
    for chunk in client.chat.completions.create(**params, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        counts[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [c.message.content for c in whole.choices]
    assert counts == [len(c.logprobs.content) for c in whole.choices]


def test_one_call_where_no_others_are_wanted(running: Running) -> None:
    """With a scripted model output, streamed and whole answers are equal."""
    from polyphi.decoding.output import Output
    from polyphi.serve.answer.jobs import OutputDelta
    from polyphi.serve.openai.chat import ChatMessage

    text = 'So: <|tool_call|>[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]<|/tool_call|>'
    for parallel, names in ((True, ["a", "b"]), (False, ["a"])):
        for size in (1, 7, len(text)):
            sampling = SamplingParams(stop_at_calls=() if parallel else ("a", "b"))
            answer = ChatMessage(Output(sampling, tools=[{"name": "a"}, {"name": "b"}]))
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            for number, piece in enumerate(pieces):
                last = "stop" if number == len(pieces) - 1 else None
                answer.add(OutputDelta(0, piece, (), last))
            assert [call["function"]["name"] for call in answer.whole["tool_calls"]] == names
            assert answer.whole["content"] == "So: "
            assert answer.output.finish_reason == "tool_calls"


# Tools: what is called, what is content, and how an answer ends

CITY, SO = '{"city": "Oslo"}', f"So: {CALLS} and so on"
REQUIRED, ONE = {"tool_choice": "required"}, {"parallel_tool_calls": False}
FORMAT = {"response_format": SCHEMA}
ARRAY = {"response_format": {"type": "regex", "regex": r"\[.*\]"}}
OTHERS = {"tools": [{"type": "function", "function": {"name": "other"}}]}
OUTCOMES: list[tuple[str, dict[str, Any], Any]] = [
    (CALLS, FORMAT, (None, BOTH_CALLS, "tool_calls")),
    (CITY, FORMAT, (CITY, [], "stop")),
    (f"[{NOW}]", ARRAY, (f"[{NOW}]", [], "stop")),
    (CALLS, REQUIRED | FORMAT, (None, BOTH_CALLS, "tool_calls")),
    (CALLS, {"tool_choice": NAMED} | FORMAT, (None, BOTH_CALLS[:1], "tool_calls")),
    (CALLS.replace(NOW, WEATHER), REQUIRED, (None, BOTH_CALLS[:1] * 2, "tool_calls")),
    (CALLS.replace(NOW, WEATHER), {"tool_choice": NAMED}, (None, BOTH_CALLS[:1], "tool_calls")),
    (CALLS, REQUIRED | ONE | FORMAT, (None, BOTH_CALLS[:1], "tool_calls")),
    (SO, ONE | {"logprobs": True}, ("So: ", BOTH_CALLS[:1], "tool_calls")),
    (SO, {}, ("So:  and so on", BOTH_CALLS, "tool_calls")),
    ("No call.", ONE, ("No call.", [], "stop")),
    (CALLS, REQUIRED | {"stop": ["ome"]}, (None, [("weather", '{"city": "R')], "stop")),
    (CALLS, OTHERS, (CALLS, [], "stop")),
]
"""What the model writes, fields of the request, and the content, calls and finish reason of the answer."""


def test_what_is_called_and_what_is_content(model: Model) -> None:
    for text, fields, expected in OUTCOMES:
        model.text = text
        choice, tokens = model.answer(**fields)
        assert outcome(choice) == expected, (text, fields)
        assert "logprobs" not in fields or len(choice["logprobs"]["content"]) == tokens
    model.text = CALLS
    content, calls, reason = outcome(model.answer(tools=TOOLS[:1])[0])
    assert (calls, reason) == (BOTH_CALLS[:1], "tool_calls")
    assert content is not None and NOW in content, "a tool that isn't offered"


@pytest.mark.parametrize("fields", few([{}, REQUIRED, FORMAT], 1))
def test_without_parallel_calls_generation_ends_after_the_first(model: Model, fields: Any) -> None:
    model.text = CALLS
    both, all_tokens = model.answer(**fields)
    assert outcome(both) == (None, BOTH_CALLS, "tool_calls")
    first, tokens = model.answer(**ONE, **fields)
    assert outcome(first) == (None, BOTH_CALLS[:1], "tool_calls")
    assert tokens <= all_tokens - len(model.running.engine.processor.tokenizer.encode(NOW))


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_required_call_has_no_content(model: Model, logprobs: bool) -> None:
    model.text = CALLS
    fields = {"tool_choice": "required", "logprobs": logprobs}
    choice, tokens = model.answer(**fields)
    assert choice["message"]["content"] is None
    with model.running.client() as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "stream": True}
        text = client.post("/v1/chat/completions", json={**body, **fields}).text
    chunks = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n")[:-2]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [delta["content"] for delta in deltas if "content" in delta] == [None]
    numbers = [call["index"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert sorted(set(numbers)) == [0, 1] and len(numbers) > 2, "arguments come in pieces"
    entries = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert len(entries) == (tokens if logprobs else 0)


@pytest.mark.parametrize(
    "fields",
    few([{"tool_choice": "required"}, {"tool_choice": NAMED}, {"response_format": SCHEMA}], 1),
)
def test_a_call_that_meets_max_tokens_has_its_arguments_as_far_as_they_came(
    model: Model, fields: dict
) -> None:
    model.text = f"{CALL}[{WEATHER}]{CALL_END}"
    whole, tokens = model.answer(**fields)
    assert outcome(whole) == (None, BOTH_CALLS[:1], "tool_calls")
    lengths = set()
    for most in range(1, tokens, 9):
        choice, drawn = model.answer(max_tokens=most, **fields)
        content, calls, reason = outcome(choice)
        assert (content, reason, drawn) == (None, "length", most)
        assert [name for name, _ in calls] in ([], ["weather"])
        for _, arguments in calls:
            assert BOTH_CALLS[0][1].startswith(arguments)
            lengths.add(len(arguments))
        if "tool_calls" not in choice["message"] and "tool_choice" in fields:
            assert choice["message"]["content"] is None
    assert len(lengths) > 1, "the arguments are never cut off"


def test_the_old_form_of_tools(model: Model, client: OpenAI) -> None:
    """At most one call, as `function_call`; its result comes back with the role `function`."""
    functions = [tool["function"] for tool in TOOLS]
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 300, "temperature": 0.1}
    model.text = f"So: {CALLS}"
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    create = client.chat.completions.create
    (choice,) = create(messages=messages, functions=functions, **options).choices
    assert choice.finish_reason == "function_call" and choice.message.content == "So: "
    call = choice.message.function_call
    assert (call.name, call.arguments) == BOTH_CALLS[0] and choice.message.tool_calls is None
    streamed = create(messages=messages, functions=functions, stream=True, **options)
    choices = [chunk.choices[0] for chunk in streamed]
    deltas = [c.delta.function_call for c in choices if c.delta.function_call]
    assert [d.name for d in deltas if d.name] == ["weather"] and len(deltas) > 1
    assert "".join(d.arguments for d in deltas) == call.arguments
    assert choices[-1].finish_reason == "function_call"
    messages += [
        {"role": "assistant", "content": "So: ", "function_call": call.model_dump()},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    old = create(messages=messages, functions=functions, **options).usage.prompt_tokens
    tool_call = {"id": "1", "type": "function", "function": call.model_dump()}
    new = [
        messages[0],
        {"role": "assistant", "content": "So: ", "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    assert create(messages=new, tools=TOOLS, **options).usage.prompt_tokens == old
    model.text = CALLS
    named = create(
        messages=messages[:1], functions=functions, function_call={"name": "now"}, **options
    )
    assert named.choices[0].message.function_call.name == "now"
    none = create(messages=messages[:1], functions=functions, function_call="none", **options)
    assert none.choices[0].message.function_call is None
    with pytest.raises(BadRequestError, match="names 'other'") as caught:
        other = {"name": "other"}
        create(messages=messages[:1], functions=functions, function_call=other, **options)
    assert caught.value.param == "function_call.name"
    with pytest.raises(BadRequestError, match="one of the two forms"):
        create(messages=messages[:1], functions=functions, tools=TOOLS, **options)
