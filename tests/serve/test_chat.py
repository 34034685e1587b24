"""Chat completions through the official client: the answers are the engine's, streamed or not."""

import base64
import io
import json

import pytest
import soundfile
from engine.conftest import clip, picture
from openai import BadRequestError, NotFoundError, OpenAI
from serve.conftest import Running

from polyphi.chat import Message, SamplingParams


@pytest.fixture
def client(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def image_part() -> dict:
    data = base64.b64encode(picture().source).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def audio_part() -> dict:
    wave, rate = clip().source
    file = io.BytesIO()
    soundfile.write(file, wave, rate, "FLOAT", format="WAV")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


CONTENTS = {
    "text": "the quick fox",
    "image": [{"type": "text", "text": "what is this?"}, image_part()],
    "audio": [audio_part(), {"type": "text", "text": "say it"}],
    "both": [image_part(), audio_part()],
}


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
        client.chat.completions.create(model="gpt-4", messages=messages)
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
    wish = dict(model="tiny", messages=messages, max_tokens=600, tools=[tool], seed=1)
    wish |= {"tool_choice": "required", "temperature": 0.0}
    whole = client.chat.completions.create(**wish).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert json.loads(whole.message.tool_calls[0].function.arguments) == {"city": "Rome"}
    streamed: list[dict] = []
    for chunk in client.chat.completions.create(**wish, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            streamed.append({"name": call.function.name, "arguments": call.function.arguments})
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls"
    assert streamed == [
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
    wish = dict(
        model="tiny",
        messages=[{"role": "user", "content": "größer"}],
        max_tokens=8,
        n=3,
        temperature=1.0,
        seed=7,
        logprobs=True,
        top_logprobs=2,
    )
    whole = client.chat.completions.create(**wish)
    assert len({c.message.content for c in whole.choices}) > 1
    for choice in whole.choices:
        told = choice.logprobs.content
        raw = b"".join(bytes(t.bytes) for t in told)
        assert raw.decode(errors="replace") == choice.message.content
        assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in told)
    texts, counts = ["", "", ""], [0, 0, 0]
    for chunk in client.chat.completions.create(**wish, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        counts[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [c.message.content for c in whole.choices]
    assert counts == [len(c.logprobs.content) for c in whole.choices]


@pytest.mark.parametrize(
    ("wish", "param", "said"),
    [
        ({"temperature": -1}, "temperature", "at least 0|from 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"n": 1000}, "n", "at most"),
        ({"stop": [""]}, "stop", "empty"),
        ({"extra_body": {"temprature": 1}}, "temprature", "'temperature'"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template", "unknown field"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "isn't supported"),
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
            "messages[0].content[0]",
            "expected",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "name"),
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
    ],
)
def test_what_is_wrong_is_told_by_its_path(
    client: OpenAI, wish: dict, param: str, said: str
) -> None:
    given = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **wish}
    with pytest.raises(BadRequestError, match=said) as caught:
        client.chat.completions.create(**given)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
    with pytest.raises(BadRequestError):  # before the first event of a stream
        client.chat.completions.create(**given, stream=True)


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
    """What the model says is given; the same from a stream and as a whole."""
    from polyphi.engine.tools import ToolParser
    from polyphi.serve.chat import Said
    from polyphi.serve.server import News

    text = 'So: <|tool_call|>[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]<|/tool_call|>'
    for parallel, names in ((True, ["a", "b"]), (False, ["a"])):
        for size in (1, 7, len(text)):
            said = Said(ToolParser(), parallel)
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            for number, piece in enumerate(pieces):
                last = "stop" if number == len(pieces) - 1 else None
                said.add(News(0, piece, (), last))
            assert [call["function"]["name"] for call in said.message["tool_calls"]] == names
            assert said.message["content"] == "So: "
            assert said.reason(News(0, "", (), "stop")) == "tool_calls"
