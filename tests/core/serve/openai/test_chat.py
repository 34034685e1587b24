"""Chat completions through the official client: the answers are the engine's, streamed or not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.chats import (
    BOTH_CALLS,
    CALLS,
    CONTENTS,
    NAMED,
    NOW,
    SCHEMA,
    TOOLS,
    WEATHER,
    Model,
    add_calls,
    outcome,
)
from fixtures.engines import clip, picture
from fixtures.servers import Running
from fixtures.variants import few
from openai import BadRequestError, NotFoundError, OpenAI

from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi.types.tools import CALL, CALL_END


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


def test_structured_output_and_tools(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "1 + 2"}]
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Rome", "Oslo")
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome"]}},
                "required": ["city"],
            },
        },
    }
    params = dict(model="tiny", messages=messages, max_tokens=600, tools=[tool], seed=1)
    params |= {"tool_choice": "required", "temperature": 0.0}
    whole = client.chat.completions.create(**params).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert json.loads(whole.message.tool_calls[0].function.arguments) == {"city": "Rome"}
    calls: list[dict] = []
    for chunk in client.chat.completions.create(**params, stream=True):
        add_calls(calls, chunk.choices[0].delta.model_dump()["tool_calls"])
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls"
    assert [call["function"] for call in calls] == [
        {"name": c.function.name, "arguments": c.function.arguments}
        for c in whole.message.tool_calls
    ]
    call = whole.message.tool_calls[0]
    again = client.chat.completions.create(
        model="tiny",
        max_tokens=4,
        tools=[tool],
        messages=[
            *messages,
            whole.message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 20}'},
        ],
    )
    assert again.usage.prompt_tokens > 20


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


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -1}, "temperature", "at least 0|from 0"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"n": 1000}, "n", "at most"),
    ({"stop": [""]}, "stop", "empty"),
    ({"extra_body": {"temprature": 1}}, "temprature", "'temperature'"),
    ({"extra_body": {"chat_template": "x"}}, "chat_template", "isn't supported"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "100"),
    ({"logit_bias": {"one": 1}}, "logit_bias", "'one'"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "'05'"),
    ({"logit_bias": {str(10**8): 1}}, "logit_bias", "100000000"),
    ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids", "at least 0"),
    ({"extra_body": {"min_tokens": 3}, "max_tokens": 2}, "min_tokens", "at most"),
    ({"extra_body": {"continue_final_message": True}}, "continue_final_message", "user"),
    (
        {"extra_body": {"chat_template_kwargs": {"tools": []}}},
        "chat_template_kwargs.tools",
        "unknown field",
    ),
    ({"max_tokens": 10**6}, "messages", "at most"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
    ({"top_logprobs": 0, "logprobs": False}, "top_logprobs", "logprobs"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "text or parts"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "expected"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
        "required",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
        "messages[0].content[0].video_url",
        "required",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": "[" * 5000}}
                    ],
                }
            ]
        },
        "messages[0].tool_calls",
        "depth",
    ),
    ({"tools": [{"type": "function", "function": {}}]}, "tools", "name"),
    (
        {"tools": [{"type": "function", "function": {"name": name}} for name in ("f", "g", "f")]},
        "tools",
        "2 tools named 'f'",
    ),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}],
            "tool_choice": "required",
        },
        "tools",
        "'f'",
    ),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "strin"}},
            },
        },
        "response_format",
        "strin",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": []}},
            }
        },
        "response_format",
        "answer fits|can't be followed",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
]


def test_what_is_wrong_is_told_by_its_path(client: OpenAI) -> None:
    for params, param, message in WRONG:
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], **params}
        with pytest.raises(BadRequestError, match=message) as caught:
            client.chat.completions.create(model="tiny", **fields)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error"), params
        with pytest.raises(BadRequestError):  # before the first event of a stream
            client.chat.completions.create(model="tiny", **fields, stream=True)


def test_stream_options_without_a_stream_are_refused(client: OpenAI) -> None:
    options = dict(model="tiny", max_tokens=1, stream_options={"include_usage": True})
    for stream in (None, False):
        for ask, prompt in (
            (client.chat.completions.create, {"messages": [{"role": "user", "content": "hi"}]}),
            (client.completions.create, {"prompt": "hi"}),
        ):
            with pytest.raises(BadRequestError) as caught:
                ask(**options, **prompt, stream=stream)
            assert caught.value.param == "stream_options"
            assert len(list(ask(**options, **prompt, stream=True))) >= 2


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


@pytest.mark.parametrize("choice", [None, "auto"])
def test_the_model_chooses_between_tools_and_the_response_format(
    model: Model, choice: str | None
) -> None:
    fields = {"tool_choice": choice, "response_format": SCHEMA}
    model.text = CALLS
    assert outcome(model.answer(**fields)[0]) == (None, BOTH_CALLS, "tool_calls")
    model.text = '{"city": "Oslo"}'
    assert outcome(model.answer(**fields)[0]) == (model.text, [], "stop")
    # Nothing in an answer of the format is a call.
    model.text = f"[{NOW}]"
    for array in (
        {"type": "regex", "regex": r"\[.*\]"},
        {"type": "json_schema", "json_schema": {}},
    ):
        fields["response_format"] = array
        assert outcome(model.answer(**fields)[0]) == (model.text, [], "stop")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_required_call_beside_a_response_format(model: Model, choice: Any) -> None:
    model.text = CALLS
    result = outcome(model.answer(tool_choice=choice, response_format=SCHEMA)[0])
    calls = BOTH_CALLS if choice == "required" else BOTH_CALLS[:1]
    assert result == (None, calls, "tool_calls")


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


def test_a_named_choice_gives_one_call(model: Model) -> None:
    model.text = CALLS.replace(NOW, WEATHER)
    result = outcome(model.answer(tool_choice="required")[0])
    assert result == (None, BOTH_CALLS[:1] * 2, "tool_calls")
    result = outcome(model.answer(tool_choice=NAMED)[0])
    assert result == (None, BOTH_CALLS[:1], "tool_calls")


@pytest.mark.parametrize(
    ("choice", "response_format"),
    few([("auto", None), ("required", SCHEMA), ("auto", SCHEMA), ("required", None)], 2),
)
def test_without_parallel_calls_generation_ends_after_the_first(
    model: Model, choice: str, response_format: dict | None
) -> None:
    model.text = CALLS
    fields = {"tool_choice": choice, "response_format": response_format}
    both, all_tokens = model.answer(**fields)
    assert outcome(both) == (None, BOTH_CALLS, "tool_calls")
    first, tokens = model.answer(parallel_tool_calls=False, **fields)
    assert outcome(first) == (None, BOTH_CALLS[:1], "tool_calls")
    more = model.running.engine.processor.tokenizer.encode(NOW)
    assert tokens <= all_tokens - len(more)


def test_text_before_the_only_call_stays(model: Model) -> None:
    model.text = f"So: {CALLS} and so on"
    choice, tokens = model.answer(parallel_tool_calls=False, logprobs=True)
    assert outcome(choice) == ("So: ", BOTH_CALLS[:1], "tool_calls")
    assert len(choice["logprobs"]["content"]) == tokens
    assert outcome(model.answer()[0]) == ("So:  and so on", BOTH_CALLS, "tool_calls")
    model.text = "No call."
    assert outcome(model.answer(parallel_tool_calls=False)[0]) == ("No call.", [], "stop")


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


def test_a_stop_string_within_a_call_leaves_it_incomplete(model: Model) -> None:
    model.text = CALLS
    result = outcome(model.answer(tool_choice="required", stop=["ome"])[0])
    assert result == (None, [("weather", '{"city": "R')], "stop")


def test_a_tool_that_is_not_offered_is_content(model: Model) -> None:
    model.text = CALLS
    weather = TOOLS[:1]
    content, calls, reason = outcome(model.answer(tools=weather)[0])
    assert (calls, reason) == (BOTH_CALLS[:1], "tool_calls")
    assert content is not None and NOW in content
    others = [{"type": "function", "function": {"name": "other"}}]
    assert outcome(model.answer(tools=others)[0]) == (CALLS, [], "stop")


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
