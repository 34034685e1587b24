"""Streams of chunks as server-sent events, and the merge of several sources."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.response_json import Writer
from polyphi.serve.openai.extensions import StreamOptions
from polyphi.serve.openai.streams import merged, stream


async def source(values: list[Any], closed: list[Any] | None = None) -> AsyncGenerator[Any]:
    try:
        for value in values:
            await asyncio.sleep(0)
            if isinstance(value, Exception):
                raise value
            yield value
    finally:
        if closed is not None:
            closed.append(values)


def events(values: list[Any], options: StreamOptions | None) -> list[Any]:
    async def collect() -> list[bytes]:
        writer = Writer()
        last, so_far = lambda: {"usage": 1}, lambda: {"so far": 1}
        try:
            return [e async for e in stream(writer, source(values), last, options, so_far)]
        finally:
            writer.close()

    texts = [e.decode().removeprefix("data: ").strip() for e in asyncio.run(collect())]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


@pytest.mark.parametrize("include", [None, False, True])
def test_the_usage_comes_where_it_was_requested(include: bool | None) -> None:
    options = None if include is None else StreamOptions(include_usage=include)
    expected = [{"n": 1}, {"n": 2}, *([{"usage": 1}] if include else []), "[DONE]"]
    assert events([{"n": 1}, {"n": 2}], options) == expected


@pytest.mark.parametrize("include", [False, True])
def test_each_chunk_has_the_usage_so_far_where_it_was_requested(include: bool) -> None:
    options = StreamOptions(include_usage=include, continuous_usage_stats=True)
    usage = {"usage": {"so far": 1}} if include else {}
    assert events([{"n": 1}, {"n": 2}], options)[:2] == [{"n": 1, **usage}, {"n": 2, **usage}]


def test_an_error_is_the_last_event() -> None:
    error = ApiError(503, "stopping", code="stopping")
    assert events([{"n": 1}, error], StreamOptions(include_usage=True)) == [{"n": 1}, error.body]


def test_values_of_all_sources_come_once_and_in_order() -> None:
    values = [[1, 2, 3], [], [4], [5, 6]]

    async def collect() -> list[tuple[int, int]]:
        return [pair async for pair in merged([source(some) for some in values])]

    pairs = asyncio.run(collect())
    assert [[v for n, v in pairs if n == number] for number in range(4)] == values
    assert pairs[:2] != [(0, 1), (0, 2)], "no source waits for another"


@pytest.mark.parametrize("error", [ApiError(400, "x"), RuntimeError("x")])
def test_an_error_of_one_source_ends_all(error: Exception) -> None:
    closed: list[Any] = []

    async def collect() -> list[tuple[int, int]]:
        endless = list(range(1000))
        return [pair async for pair in merged([source(endless, closed), source([1, error])])]

    with pytest.raises(type(error)):
        asyncio.run(collect())
    assert closed, "the other source is closed"


def test_a_source_waits_for_its_reader() -> None:
    produced = [0, 0]

    async def counted(number: int) -> AsyncGenerator[int]:
        for value in range(1000):
            produced[number] += 1
            yield value

    async def read(count: int) -> None:
        pieces = merged([counted(0), counted(1)])
        for _ in range(count):
            await anext(pieces)
            for _ in range(20):
                await asyncio.sleep(0)
            assert sum(produced) <= count + 4, "what isn't read isn't produced"
        await pieces.aclose()

    asyncio.run(read(10))
