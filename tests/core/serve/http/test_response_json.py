"""JSON responses: large ones are equal to small ones, but encoded in a thread, a few values at a time."""

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from polyphi.serve.admission.quotas import Pool
from polyphi.serve.admission.settings import MIB, Settings
from polyphi.serve.http import response_json
from polyphi.serve.http.guard import AccessGuard
from polyphi.serve.http.response_json import (
    CHUNK_BYTES,
    ChunkedJson,
    EncodedJson,
    Writer,
    json_pieces,
)

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
    monkeypatch.setattr(response_json, "SMALL", 3)
    monkeypatch.setattr(response_json, "CHARACTERS", 2)
    monkeypatch.setattr(response_json, "CHUNK_BYTES", 8)


@pytest.mark.usefixtures("tiny")
@given(VALUES)
def test_pieces_are_the_json_of_the_whole(value: Any) -> None:
    whole = bytes(JSONResponse(value).body)
    assert b"".join(json_pieces(value)) == whole
    assert b"".join(response_json._chunks(json_pieces(value))) == whole
    nested = {"a": [value, EncodedJson(tuple(json_pieces(value))), 1], "b": value}
    assert b"".join(json_pieces(nested)) == bytes(
        JSONResponse({"a": [value, value, 1], "b": value}).body
    )


@pytest.mark.usefixtures("tiny")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(VALUES, max_size=4), max_size=3))
def test_lists_are_joined(parts: list[list[Any]]) -> None:
    joined = EncodedJson.joined(iter(parts))
    whole = [one for part in parts for one in part]
    assert b"".join(json_pieces(joined)) == bytes(JSONResponse(whole).body)


def shapes() -> dict[str, Any]:
    entry = {"token": "ab", "logprob": -1.25, "bytes": [97, 98]}
    return {
        "ids": list(range(40_000)),
        "text": 'é"\n' * 100_000,
        "tokens": [{**entry, "top_logprobs": [entry] * 20} for _ in range(400)],
        "choices": [
            {"index": i, "tops": [{f"t{j}": -0.5 for j in range(20)}] * 250} for i in range(4)
        ],
        "columns": {"tokens": ["ab"] * 20_000, "logprobs": [None, *[-0.1] * 20_000]},
    }


@pytest.mark.parametrize("name", shapes())
def test_no_call_of_the_encoder_writes_much(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, calls = shapes()[name], []
    dumps = response_json._dumps
    monkeypatch.setattr(response_json, "_dumps", lambda v: calls.append(dumps(v)) or calls[-1])
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
            assert [e async for e in writer.event({"a": 1})] == [b'data: {"a": 1}\n\n']
            event = b"".join([piece async for piece in writer.event({"a": part})])
        finally:
            writer.close()
        return small, large, event

    small, large, event = asyncio.run(answer())
    assert type(small) is JSONResponse and isinstance(large, ChunkedJson)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    state = {"bytes": Pool("bytes", 1 << 20).take(b"", 0)}
    asyncio.run(large({"type": "http", "state": state}, None, send))  # type: ignore[arg-type]
    body = b"".join(message["body"] for message in sent[1:])
    builder, *numbers = json.loads(body)["a"]
    assert builder != here and numbers == list(range(10_000))
    assert threads and here not in threads
    headers = dict(sent[0]["headers"])
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"] == b"application/json"
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    assert json.loads(event.removeprefix(b"data: "))["a"][1:] == numbers


class Reader:
    """Sends responses of one client, which reads piece by piece."""

    def __init__(self, writer: Writer, pool: Pool, client: bytes) -> None:
        self.writer, self.reservation = writer, pool.take(client, 0)
        self.sent: list[dict[str, Any]] = []
        self._may_send = asyncio.Semaphore(0)
        self.task: asyncio.Task[None] | None = None

    async def start(self, size: int) -> "Reader":
        response = await self.writer.response("x" * size)
        scope = {"type": "http", "path": "/v1/responses", "state": {"bytes": self.reservation}}
        self.task = asyncio.ensure_future(response(scope, None, self._send))  # type: ignore[arg-type]
        await self.read(1)
        return self

    async def _send(self, message: Any) -> None:
        await self._may_send.acquire()
        self.sent.append({**message, "body": bytes(message.get("body", b""))})

    async def read(self, messages: int) -> None:
        for _ in range(messages):
            self._may_send.release()
        await asyncio.sleep(0.02)

    async def read_all(self) -> bytes:
        assert self.task
        await self.read(10_000)
        await self.task
        return b"".join(message["body"] for message in self.sent)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def test_what_waits_to_be_read_counts_until_it_is_sent() -> None:
    unread = Pool("bytes", 5 * MIB, always=MIB // 16)

    async def run() -> None:
        writer = Writer()
        try:
            first = await Reader(writer, unread, b"a").start(2 * MIB)
            assert first.status == 200 and unread.used == 2 * MIB + 2
            await first.read(MIB // CHUNK_BYTES)
            assert MIB - CHUNK_BYTES <= unread.used <= MIB + 2 * CHUNK_BYTES
            alone = await Reader(writer, unread, b"b").start(3 * MIB + MIB // 2)
            assert alone.status == 200, "a client with nothing to read may have one response"
            refused = await Reader(writer, unread, b"b").start(MIB // 8)
            body = json.loads(await refused.read_all())
            assert refused.status == 429 and body["error"]["code"] == "unread_responses"
            assert "3.5 MiB" in body["error"]["message"] and "0.1 MiB" in body["error"]["message"]
            assert dict(refused.sent[0]["headers"])[b"retry-after"] == b"10"
            full = await Reader(writer, unread, b"c").start(MIB)
            assert full.status == 503, "all clients together have a limit"
            small = await Reader(writer, unread, b"c").start(MIB // 20)
            assert small.status == 200, "others' unread responses don't refuse a small one"
            assert len(json.loads(await small.read_all())) == MIB // 20
            assert len(json.loads(await first.read_all())) == 2 * MIB
            assert unread.used_by(b"a") == 0
            assert alone.task
            alone.task.cancel()
            await asyncio.sleep(0)
            alone.reservation.release()  # at the end of the request
            assert unread.used == 0
        finally:
            writer.close()

    asyncio.run(run())


SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}


async def empty() -> Any:
    return {"type": "http.request", "body": b""}


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES, 5 * CHUNK_BYTES + 7]
)
@pytest.mark.parametrize("response", [Response, lambda body: ChunkedJson((body, body))])
def test_bodies_are_passed_on_in_parts_without_a_copy(size: int, response: Any) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = AccessGuard(response(body), Settings("tiny"))
    asyncio.run(app(SCOPE, empty, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == [
        "http.response.start",
        *["http.response.body"] * (len(sent) - 1),
    ]
    bodies = [message["body"] for message in sent[1:]]
    assert b"".join(bodies) in (body, 2 * body) and max(map(len, bodies)) <= CHUNK_BYTES
    assert [message.get("more_body", False) for message in sent[1:]] == [
        *[True] * (len(sent) - 2),
        False,
    ]
    if size > CHUNK_BYTES:
        assert all(part.obj is body for part in bodies if part)


def test_large_bodies_leave_the_event_loop_to_others_after_each_part() -> None:
    """Also where the system takes all of them at once, of each of a hundred connections."""
    order: list[int] = []

    async def run() -> None:
        async def respond(number: int) -> None:
            async def send(message: Any) -> None:
                order.append(number)

            guard = AccessGuard(Response(bytes(3 * CHUNK_BYTES)), Settings("tiny"))
            await guard(SCOPE, empty, send)

        await asyncio.gather(*map(respond, range(3)))

    asyncio.run(run())
    assert order == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2], "a start and a part, then part by part"


def test_a_large_event_is_encoded_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    dumps = response_json._dumps
    monkeypatch.setattr(response_json, "_dumps", lambda v: calls.append(dumps(v)) or calls[-1])

    async def run() -> None:
        writer = Writer()
        try:
            pieces = writer.event({"a": list(range(1_000_000))}, "name")
            first = await anext(pieces)
            assert first.startswith(b'event: name\ndata: {"a":[0,1,') and len(calls) < 50
            whole = first + b"".join([piece async for piece in pieces])
        finally:
            writer.close()
        assert json.loads(whole.removeprefix(b"event: name\ndata: "))["a"][-1] == 999_999
        assert whole.endswith(b"\n\n") and len(calls) > 400

    asyncio.run(run())
