"""Streamed answers: chunks as server-sent events, then the usage where it was requested, then `[DONE]`.

>>> Events(stream(writer, chunks(), last, body.stream_options, usage), admitted.transfer())
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.response_json import Writer, event
from polyphi.serve.openai.extensions import StreamOptions

T = TypeVar("T")


async def stream(
    writer: Writer,
    chunks: AsyncGenerator[dict[str, Any]],
    last: Callable[[], dict[str, Any]],
    options: StreamOptions | None,
    usage_so_far: Callable[[], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """The events of a stream. Where the usage is requested, `last()`, called after all chunks, returns the chunk with
    it, and `usage_so_far` the usage of each chunk. An ApiError from `chunks` becomes the stream's last event."""
    options = options or StreamOptions()
    continuous = options.include_usage and options.continuous_usage_stats
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                usage = {"usage": usage_so_far()} if continuous else {}
                async for piece in writer.event({**chunk, **usage}):
                    yield piece
        if options.include_usage:
            yield event(last())
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield event(error.body)


async def named_stream(
    writer: Writer,
    events: AsyncGenerator[dict[str, Any]],
    failure: Callable[[ApiError], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """Events that are named by their `type`. `failure` returns the last event for an ApiError from `events`."""
    try:
        async with aclosing(events):
            async for value in events:
                async for piece in writer.event(value, value["type"]):
                    yield piece
    except ApiError as error:
        value = failure(error)
        async for piece in writer.event(value, value["type"]):
            yield piece


async def merged(sources: Sequence[AsyncIterable[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(number of the source, value) of several sources, in order of arrival. An exception of one source ends all. A
    source is read only when its last value was read: a source that produces faster keeps what waits."""
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(1)

    async def listen(number: int, source: AsyncIterable[T]) -> None:
        try:
            async for value in source:
                await queue.put((number, value))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    listeners = [asyncio.ensure_future(listen(*pair)) for pair in enumerate(sources)]
    try:
        for _ in sources:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for listener in listeners:
            listener.cancel()
