"""Streamed answers: chunks as server-sent events, then the usage where it was requested, then `[DONE]`.

>>> Events(stream(writer, chunks(), last, body.stream_options, usage), ticket.transfer())
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from polyphi.serve.answers import Writer, event
from polyphi.serve.errors import ApiError
from polyphi.serve.extensions import StreamOptions

T = TypeVar("T")


async def stream(
    writer: Writer,
    chunks: AsyncGenerator[dict[str, Any]],
    last: Callable[[], dict[str, Any]],
    options: StreamOptions | None,
    usage_so_far: Callable[[], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """The events of a stream. `last()`, called after all chunks, returns the chunk with the usage. `usage_so_far`: the
    usage of each chunk, where it is requested. An ApiError from `chunks` becomes the stream's last event."""
    options = options or StreamOptions()
    continuous = options.include_usage and options.continuous_usage_stats
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                usage = {"usage": usage_so_far()} if continuous else {}
                yield await writer.event({**chunk, **usage})
        final = last()
        if options.include_usage:
            yield event(final)
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
                yield await writer.event(value, value["type"])
    except ApiError as error:
        value = failure(error)
        yield await writer.event(value, value["type"])


async def merged(sources: Sequence[AsyncIterable[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(number of the source, value) of several sources, in order of arrival. An exception of one source ends all."""
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def listen(number: int, source: AsyncIterable[T]) -> None:
        try:
            async for value in source:
                queue.put_nowait((number, value))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

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
