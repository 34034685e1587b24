"""Fields beyond OpenAI's have the effect of vLLM's, alike in chat and completions, streamed and whole."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.decoding.structured import compile_grammar
from polyphi.engine.engine import Engine
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.openai.formats import choices
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.chats import image_part
from tests.fixtures.engines import SAYINGS, picture
from tests.fixtures.servers import Running, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "the quick fox"}]
BASES: dict[str, dict[str, Any]] = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "the quick"}}
ROUTES = pytest.mark.parametrize("path", BASES)


@pytest.fixture
def post(running: Running) -> Iterator[Any]:
    """Sends a request; returns the body of a valid answer, or the error."""
    with running.client() as client:

        def sent(path: str, **fields: Any) -> Any:
            base = {"max_tokens": 12, **BASES[path]} if path in BASES else {}
            reply = client.post(path, json={**base, **fields})
            body = reply.json()
            return body if reply.status_code == 200 else body["error"]

        yield sent


@pytest.fixture
def chunks(running: Running) -> Iterator[Any]:
    """The chunks of a streamed answer, with a usage at the end."""
    with running.client() as client:

        def streamed(path: str, options: dict[str, Any] | None = None, **fields: Any) -> Any:
            stream = {"stream": True, "stream_options": {"include_usage": True, **(options or {})}}
            body = {"max_tokens": 12, **BASES[path], **stream, **fields}
            events = client.post(path, json=body).text.split("\n\n")
            assert events[-2:] == ["data: [DONE]", ""], events
            return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

        yield streamed


def text_of(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return choice.get("message", choice.get("delta"))["content"] or ""


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """One answer of a stream: its text, token ids and reasons."""
    result: dict[str, Any] = {"text": "", "token_ids": [], "finish_reason": None}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        result["text"] += text_of(choice) if "text" in choice or choice["delta"] else ""
        result["token_ids"] += choice.get("token_ids", [])
        if choice["finish_reason"]:
            result |= {n: choice[n] for n in ("finish_reason", "stop_reason")}
    return result


@ROUTES
def test_token_ids_of_prompt_and_answer(
    running: Running, post: Any, chunks: Any, path: str
) -> None:
    tokenizer = running.engine.processor.tokenizer
    fields: dict[str, Any] = {"return_token_ids": True, "n": 2, "temperature": 1.0, "seed": 4}
    whole, stream = post(path, **fields), chunks(path, **fields)
    prompt = BASES[path].get("messages") or BASES[path]["prompt"]
    tokens = post("/tokenize", **{"messages" if path == CHAT else "prompt": prompt})["tokens"]
    at = whole if path == CHAT else whole["choices"][0]
    assert at["prompt_token_ids"] == tokens and len(tokens) == whole["usage"]["prompt_tokens"]
    first = stream[0] if path == CHAT else stream[0]["choices"][0]
    assert first["prompt_token_ids"] == tokens
    for choice in whole["choices"]:
        assert tokenizer.decode(choice["token_ids"], skip_special=True) == text_of(choice)
        answer = joined(stream, choice["index"])
        assert answer["token_ids"] == choice["token_ids"] and answer["text"] == text_of(choice)
    assert sum(len(c["token_ids"]) for c in whole["choices"]) == whole["usage"]["completion_tokens"]
    assert "token_ids" not in post(path)["choices"][0]


@ROUTES
def test_tokens_as_their_ids(post: Any, chunks: Any, path: str) -> None:
    """Each token of the log-probabilities is its id, and nothing else differs."""
    fields = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    named = {**fields, "return_tokens_as_token_ids": True}
    plain, whole = (post(path, **f, return_token_ids=True)["choices"][0] for f in (fields, named))
    assert text_of(whole) == text_of(plain) and whole["token_ids"] == plain["token_ids"]
    expected = [f"token_id:{id}" for id in whole["token_ids"]]
    assert names(whole) == expected and names(plain) != expected
    answer = chunks(path, **named)
    streamed = [c for chunk in answer for c in chunk["choices"] if c["logprobs"]]
    assert [name for choice in streamed for name in names(choice)] == expected
    logprobs = whole["logprobs"]
    if path == CHAT:
        tops = [entry["token"] for item in logprobs["content"] for entry in item["top_logprobs"]]
        pairs = zip(logprobs["content"], plain["logprobs"]["content"], strict=True)
        assert all(a["bytes"] == b["bytes"] and a["logprob"] == b["logprob"] for a, b in pairs)
    else:
        tops = [name for top in logprobs["top_logprobs"] for name in top]
        assert logprobs["text_offset"] == plain["logprobs"]["text_offset"]
    assert len(tops) >= 24 and all(re.fullmatch(r"token_id:\d+", name) for name in tops)


def names(choice: dict[str, Any]) -> list[str]:
    """The tokens of a choice's log-probabilities."""
    logprobs = choice["logprobs"]
    return logprobs["tokens"] if "tokens" in logprobs else [t["token"] for t in logprobs["content"]]


@ROUTES
def test_stops(running: Running, post: Any, chunks: Any, path: str) -> None:
    """Each end, whole and streamed; the reason is what ended the answer."""
    tokenizer = running.engine.processor.tokenizer
    whole = post(path, return_token_ids=True)["choices"][0]
    text, ids = text_of(whole), whole["token_ids"]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("length", None)
    word, token = text[4], ids[5]
    before = text[: text.index(word)]
    at = ids.index(token)
    for fields, expected in (
        ({"stop": word}, (before, word)),
        ({"stop": [word], "include_stop_str_in_output": True}, (before + word, word)),
        ({"stop_token_ids": [token]}, (tokenizer.decode(ids[:at]), token)),
    ):
        choice = post(path, **fields)["choices"][0]
        assert (text_of(choice), choice["stop_reason"]) == expected
        answer = joined(chunks(path, **fields))
        assert (answer["text"], answer["stop_reason"]) == expected
        assert answer["finish_reason"] == choice["finish_reason"] == "stop"
    later = post(path, stop=word, min_tokens=10, return_token_ids=True)["choices"][0]
    assert len(later["token_ids"]) >= 10


@ROUTES
def test_ignored_end_tokens_and_biases(running: Running, post: Any, path: str) -> None:
    end = running.engine.processor.tokenizer.eos_ids[0]
    bias = {"logit_bias": {str(end): 100}, "return_token_ids": True}
    empty = post(path, **bias)["choices"][0]
    assert empty["token_ids"] == [] and (empty["finish_reason"], empty["stop_reason"]) == (
        "stop",
        None,
    )
    full = post(path, **bias, ignore_eos=True)
    assert full["choices"][0]["token_ids"] == [end] * 12 and text_of(full["choices"][0]) == ""
    choice = post(path, **bias, ignore_eos=True, skip_special_tokens=False)["choices"][0]
    assert text_of(choice) == "<|end|>" * 12
    assert len(post(path, **bias, min_tokens=3)["choices"][0]["token_ids"]) == 3
    assert text_of(post(path, top_k=-1)["choices"][0]) == text_of(post(path, top_k=0)["choices"][0])


@ROUTES
def test_log_probabilities_of_the_prompt(running: Running, post: Any, path: str) -> None:
    engine, scored = running.engine, SamplingParams(max_tokens=0, prompt_logprobs=2)
    tokens = engine.processor.tokenizer
    prompt = [Message.user("the quick fox")] if path == CHAT else tokens.encode("the quick")
    expected = engine.generate(prompt, sampling=scored).prompt_logprobs
    body = post(path, prompt_logprobs=2)
    first, *entries = (body if path == CHAT else body["choices"][0])["prompt_logprobs"]
    assert first is None and len(entries) == len(expected) == body["usage"]["prompt_tokens"] - 1
    for entry, its in zip(entries, expected, strict=True):
        ranked = {str(id): (i, logprob) for i, (id, logprob) in enumerate(its.top, 1)}
        assert set(entry) == {str(its.token), *ranked}
        assert entry[str(its.token)]["logprob"] == pytest.approx(its.logprob, abs=1e-5)
        for id, (rank, logprob) in ranked.items():
            assert entry[id]["rank"] == rank
            assert entry[id]["logprob"] == pytest.approx(logprob, abs=1e-5)
    assert post(path, prompt_logprobs=0, stream=True)["param"] == "prompt_logprobs"


@ROUTES
def test_the_usage_of_each_chunk(chunks: Any, post: Any, path: str) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 1}
    stream = chunks(path, {"continuous_usage_stats": True}, **fields)
    counts = [chunk["usage"]["completion_tokens"] for chunk in stream]
    whole = post(path, **fields)["usage"]["completion_tokens"]
    assert counts == sorted(counts) and counts[-2] == counts[-1] == whole > 2
    assert len({chunk["usage"]["prompt_tokens"] for chunk in stream}) == 1
    assert not any("usage" in chunk for chunk in chunks(path, **fields)[:-1])


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_streamed_echo_is_the_whole_ones(post: Any, chunks: Any, logprobs: int | None) -> None:
    fields = {"prompt": ["the quick", "1 +"], "echo": True, "logprobs": logprobs, "n": 2}
    for more in ({"temperature": 1.0, "seed": 2}, {"n": 1, "max_tokens": 0}):
        whole = post(COMPLETIONS, **{**fields, **more})
        stream = chunks(COMPLETIONS, **{**fields, **more})
        for choice in whole["choices"]:
            answer = joined(stream, choice["index"])
            assert (answer["text"], answer["finish_reason"]) == (
                choice["text"],
                choice["finish_reason"],
            )
            lists = [
                c["logprobs"]
                for chunk in stream
                for c in chunk["choices"]
                if c["index"] == choice["index"]
            ]
            assert (choice["logprobs"] is None) == (logprobs is None)
            for name, values in (choice["logprobs"] or {}).items():
                parts = [value for part in lists for value in part[name]]
                assert len(parts) == len(values)
                if name in ("tokens", "text_offset"):
                    assert parts == values
        assert stream[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


SCHEMA = {"enum": ["yes", "no"]}
GBNF = 'root ::= ("ja" | "nein") "!"?'
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "regex", "regex": "a{3}"}}, "aaa"),
    ({"response_format": {"type": "regex", "pattern": "a{3}"}}, "aaa"),
    ({"response_format": {"type": "grammar", "grammar": GBNF}}, "(ja|nein)!?"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '"(yes|no)"'),
    ({"structured_outputs": {"json": SCHEMA}}, '"(yes|no)"'),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, '"(yes|no)"'),
    ({"structured_outputs": {"regex": "[0-9]{2}"}}, "[0-9]{2}"),
    ({"structured_outputs": {"choice": ["a.b", "c|d"]}}, r"a\.b|c\|d"),
    ({"structured_outputs": {"grammar": 'start: "x" | "yz"'}}, "x|yz"),
    ({"structured_outputs": {"json_object": True}}, r"\{.*"),
    ({"guided_json": SCHEMA}, '"(yes|no)"'),
    ({"guided_regex": "a{3}"}, "aaa"),
    ({"guided_choice": ["one"]}, "one"),
    ({"guided_grammar": GBNF}, "(ja|nein)!?"),
    ({"json_schema": SCHEMA}, '"(yes|no)"'),
    ({"regex": "a{3}"}, "aaa"),
    ({"ebnf": GBNF}, "(ja|nein)!?"),
    ({"grammar": GBNF}, "(ja|nein)!?"),
]


@ROUTES
def test_every_spelling_of_a_form(post: Any, path: str) -> None:
    for fields, expected in FORMS if path == CHAT else FORMS[::4]:
        body = post(path, **fields, max_tokens=30, temperature=1.0)
        assert "choices" in body, (fields, body)
        assert re.fullmatch(expected, text_of(body["choices"][0]), re.DOTALL), fields


TOKENIZER = Tokenizer.train(SAYINGS, vocab_size=384)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_choices_are_texts_not_expressions(texts: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(texts))
    matcher = compile_grammar(choices(texts, "guided_choice"), TOKENIZER).matcher()
    spellings, remaining = TOKENIZER.spelled(), chosen.encode()
    while (
        remaining
    ):  # by the longest token that is allowed: which ones are is a matter of the grammar's library
        logits = matcher.mask(torch.zeros(TOKENIZER.vocab_size))
        allowed = logits.isfinite().nonzero().flatten().tolist()
        spelled = [(s, id) for id in allowed if (s := spellings[id])]
        token, id = max((s, id) for s, id in spelled if remaining.startswith(s))
        matcher.accept(id)
        remaining = remaining[len(token) :]
    ends = matcher.mask(torch.zeros(TOKENIZER.vocab_size))[TOKENIZER.eos_ids[0]]
    assert ends.isfinite()


def test_a_message_is_continued(running: Running, post: Any, chunks: Any) -> None:
    end = {"continue_final_message": True, "add_generation_prompt": False}
    bare = post(CHAT)
    empty = [*HI, {"role": "assistant", "content": ""}]
    same = post(CHAT, messages=empty, **end)
    assert text_of(same["choices"][0]) == text_of(bare["choices"][0])
    assert same["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"]
    tokenizer = running.engine.processor.tokenizer
    messages = [*HI, {"role": "assistant", "content": "the lazy"}]
    row = [*post("/tokenize", messages=HI)["tokens"], *tokenizer.encode("the lazy")]
    assert post("/tokenize", messages=messages, **end)["tokens"] == row
    expected = running.engine.generate(row, sampling=SamplingParams(max_tokens=12)).text
    for fields in (end, {"chat_template_kwargs": end}):
        assert text_of(post(CHAT, messages=messages, **fields)["choices"][0]) == expected
        assert joined(chunks(CHAT, messages=messages, **fields))["text"] == expected
    closed = post("/tokenize", messages=HI, add_generation_prompt=False)["tokens"]
    assert (
        closed[-1] == tokenizer.control("<|endoftext|>") and closed[:-1] == row[: len(closed) - 1]
    )
    both = {**end, "add_generation_prompt": True}
    assert post(CHAT, messages=messages, **both)["param"] == "continue_final_message"


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_allowed_tools(post: Any) -> None:
    def allowed(mode: str, *names: str) -> dict[str, Any]:
        some = {"mode": mode, "tools": [tool(name) for name in names]}
        return {"type": "allowed_tools", "allowed_tools": some}

    tools = [tool(name) for name in ("one", "two", "three")]
    some = post(CHAT, tools=tools, tool_choice=allowed("auto", "three", "one"))
    assert some["choices"] == post(CHAT, tools=[tools[0], tools[2]])["choices"]
    fields = {"max_tokens": 400, "temperature": 1.0, "seed": 1}
    forced = post(CHAT, tools=tools, tool_choice=allowed("required", "two"), **fields)
    calls = forced["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"two"}
    for choice in (allowed("auto", "four"), allowed("required")):
        error = post(CHAT, tools=tools, tool_choice=choice)
        assert error["param"] == "tool_choice.allowed_tools.tools"


def test_tokens_of_conversations_and_texts(running: Running, post: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "größer"}, image_part()]}]
    row = running.engine.rows.row([Message.user("größer", picture())])
    body = post("/tokenize", messages=messages, return_token_strs=True)
    assert body["tokens"] == row.ids.tolist()
    assert body["count"] == len(row) == body["text_tokens"] + body["image_tokens"]
    assert len(body["token_strs"]) == len(row) and body["token_strs"][0] == "<|user|>"
    for text in ("", "the quick fox", "the quick brown fox " * 3000):
        body = post("/tokenize", prompt=text, return_token_strs=True)
        assert "".join(body["token_strs"]) == text and len(body["tokens"]) == body["count"]
    assert "token_strs" not in post("/tokenize", prompt="a")


def test_the_other_name_of_the_repetition_penalty(post: Any) -> None:
    answers = [
        post(CHAT, **fields)["choices"]
        for fields in ({"repeat_penalty": 0.1}, {"repetition_penalty": 0.1}, {})
    ]
    assert answers[0] == answers[1] != answers[2]


def test_the_tokenizer_describes_itself(running: Running, tmp_path: Any) -> None:
    running.engine.processor.tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    with running.client() as client:
        assert client.get("/tokenizer_info").json() == config
    assert "chat_template" in config and config["eos_token"]


def test_a_model_has_several_names(engine: Engine) -> None:
    with (
        serving(engine, Settings("tiny", aliases=("gpt-4o", "org/name"))) as running,
        running.client() as client,
    ):
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == ["tiny", "gpt-4o", "org/name", "vision", "speech"]
        assert client.get("/v1/models/org/name").json()["root"] == "tiny"
        for name in names:
            body = {"model": name, "messages": HI, "max_tokens": 1}
            assert client.post(CHAT, json=body).json()["model"] == name
    for alias in ("tiny", "vision", ""):
        with (
            pytest.raises(ValueError, match="alias"),
            serving(engine, Settings("tiny", aliases=(alias,))),
        ):
            pass
