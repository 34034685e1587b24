"""JSON responses: large ones are equal to small ones, but encoded in a thread, a few values at a time."""

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from polyphi.serve import answers
from polyphi.serve.answers import ChunkedJson, EncodedJson, Writer, json_pieces

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text('aé"\\\n', max_size=3), inner, max_size=8),
    ),
    max_leaves=60,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit at which every value is large."""
    monkeypatch.setattr(answers, "SMALL", 3)
    monkeypatch.setattr(answers, "CHARACTERS", 2)
    monkeypatch.setattr(answers, "CHUNK", 8)


@pytest.mark.usefixtures("tiny")
@given(VALUES)
def test_pieces_are_the_json_of_the_whole(value: Any) -> None:
    whole = bytes(JSONResponse(value).body)
    assert b"".join(json_pieces(value)) == whole
    assert b"".join(answers._chunks(json_pieces(value))) == whole
    nested = {"a": [value, EncodedJson(tuple(json_pieces(value))), 1], "b": value}
    assert b"".join(json_pieces(nested)) == bytes(
        JSONResponse({"a": [value, value, 1], "b": value}).body
    )


@pytest.mark.usefixtures("tiny")
@given(st.lists(st.lists(VALUES, max_size=6), max_size=4))
def test_lists_are_joined(parts: list[list[Any]]) -> None:
    joined = EncodedJson.joined(iter(parts))
    whole = [one for part in parts for one in part]
    assert b"".join(json_pieces(joined)) == bytes(JSONResponse(whole).body)


def shapes() -> dict[str, Any]:
    entry = {"token": "ab", "logprob": -1.25, "bytes": [97, 98]}
    return {
        "ids": list(range(100_000)),
        "text": 'é"\n' * 100_000,
        "tokens": [{**entry, "top_logprobs": [entry] * 20} for _ in range(1000)],
        "choices": [
            {"index": i, "tops": [{f"t{j}": -0.5 for j in range(20)}] * 500} for i in range(4)
        ],
        "columns": {"tokens": ["ab"] * 20_000, "logprobs": [None, *[-0.1] * 20_000]},
    }


@pytest.mark.parametrize("name", shapes())
def test_no_call_of_the_encoder_writes_much(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, calls = shapes()[name], []
    dumps = answers._dumps
    monkeypatch.setattr(answers, "_dumps", lambda v: calls.append(dumps(v)) or calls[-1])
    assert json.loads(b"".join(json_pieces({"a": [value]}))) == {"a": [value]}
    assert len(calls) > 1 and max(map(len, calls)) < 256 << 10


def test_large_answers_are_built_and_written_in_a_thread() -> None:
    here = threading.get_ident()
    threads: list[int] = []

    class Noted(str):
        """A text that notes who asks for its length, as the writer does."""

        def __len__(self) -> int:
            threads.append(threading.get_ident())
            return super().__len__()

    async def answer() -> tuple[Any, Any, Any]:
        writer = Writer()
        try:
            small = await writer.response({"a": [1, 2]})
            part = await writer.build_part(lambda: [threading.get_ident(), *range(10_000)], 10_000)
            large = await writer.response({"a": part, "b": [Noted("c")]})
            assert await writer.build_part(lambda: [1], 1) == [1]
            assert await writer.event({"a": 1}) == b'data: {"a": 1}\n\n'
            event = await writer.event({"a": part})
        finally:
            writer.close()
        return small, large, event

    small, large, event = asyncio.run(answer())
    assert type(small) is JSONResponse and isinstance(large, ChunkedJson)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(large({"type": "http"}, None, send))  # type: ignore[arg-type]
    body = b"".join(message["body"] for message in sent[1:])
    builder, *numbers = json.loads(body)["a"]
    assert builder != here and numbers == list(range(10_000))
    assert threads and here not in threads
    headers = dict(sent[0]["headers"])
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"] == b"application/json"
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    assert json.loads(event.removeprefix(b"data: "))["a"][1:] == numbers
