"""What answers have in common: how they are written, events of a stream, what they cost, what we tell beside OpenAI's
fields.

Large JSON is built and written in a thread of its own, by calls of the encoder for a few values each: the encoder holds
Python's global lock for a whole call, and everybody else waits for that lock.

>>> writer = Writer()
>>> logprobs = await writer.built(lambda: lists_of(tokens), size=len(tokens))    # in the thread if that is much
>>> return await writer.response({"text": text, "logprobs": logprobs})
"""

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from polyphi.messages import Completion

T = TypeVar("T")
SMALL = 2048
"""Values that are built, or written by one call of the encoder: about a millisecond of work."""
CHARACTERS = 32
"""Of a text that take about as long to write as a value."""
NUMBERS = frozenset({int, float, bool, type(None)})
"""Types of values that are as small as a value is."""
CHUNK = 64 << 10
"""Bytes of an answer that are sent at once, or more."""


@dataclass(frozen=True)
class Written:
    """A value whose JSON is written already, in `pieces`."""

    pieces: tuple[bytes, ...]

    @classmethod
    def joined(cls, parts: Iterable[Sequence[Any]]) -> "Written":
        """One list of the elements of several lists, each of which may go when the next one comes."""
        inner = (piece for part in parts if part for piece in (b",", *_inner(part)))
        next(inner, None)  # the comma before the first one
        return cls((b"[", *_chunks(inner), b"]"))


def json_pieces(value: Any) -> Iterator[bytes]:
    """The JSON of a value in pieces, each of `SMALL` values or so; joined, what `JSONResponse` writes."""
    if isinstance(value, Written):
        yield from value.pieces
    elif _size(value) <= SMALL:
        yield _dumps(value)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), SMALL * CHARACTERS):
            yield _dumps(value[start : start + SMALL * CHARACTERS])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        for number, (key, one) in enumerate(value.items()):
            yield (b"," if number else b"{") + _dumps(key) + b":"
            yield from json_pieces(one)
        yield b"}"
    else:
        yield b"["
        yield from _inner(value)
        yield b"]"


def _inner(elements: Sequence[Any]) -> Iterator[bytes]:
    """The JSON of a list without its brackets."""
    for number, group in enumerate(_groups(elements)):
        if number:
            yield b","
        if len(group) == 1:
            yield from json_pieces(group[0])
        else:
            yield _dumps(group)[1:-1]


def _groups(elements: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Elements that are written by one call of the encoder, or one that is large."""
    for start in range(0, len(elements), SMALL):
        some = elements[start : start + SMALL]
        if NUMBERS.issuperset(map(type, some)):
            yield some
            continue
        group: list[Any] = []
        size = 0
        for element in some:
            own = _size(element)
            if group and size + own > SMALL:
                yield group
                group, size = [], 0
            group.append(element)
            size += own
        yield group


def _size(value: Any, most: int = SMALL) -> int:
    """How many values there are in one, counted until they are more than `most`."""
    if isinstance(value, Written):
        return most + 1
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS
    if not isinstance(value, dict | list | tuple):
        return 1
    size = 1
    for one in value.values() if isinstance(value, dict) else value:
        size += _size(one, most - size)
        if size > most:
            break
    return size


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of at least `CHUNK`, but for the last."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk = bytearray()
    if chunk:
        yield bytes(chunk)


class Writer:
    """Builds and writes answers, small ones at once and large ones in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write answers")

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def built(self, build: Callable[[], T], size: int) -> T | Written:
        """What `build` gives, a part of an answer with about `size` values; if that is much, written already."""
        if size <= SMALL:
            return build()
        return await self.in_thread(lambda: Written(tuple(_chunks(json_pieces(build())))))

    async def response(self, value: Any) -> Response:
        """An answer in JSON."""
        if _size(value) <= SMALL:
            return JSONResponse(value)
        return Large(await self.in_thread(lambda: deque(_chunks(json_pieces(value)))))

    async def event(self, value: Any) -> bytes:
        """A server-sent event, whose JSON may be large."""
        if _size(value) <= SMALL:
            return event(value)
        return await self.in_thread(lambda: b"".join((b"data: ", *json_pieces(value), b"\n\n")))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Work on a large answer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Large(Response):
    """JSON that is sent piece by piece, as fast as the client reads."""

    media_type = "application/json"

    def __init__(self, pieces: deque[bytes]) -> None:
        super().__init__(headers={"content-length": str(sum(map(len, pieces)))})
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        while self._pieces:
            piece = self._pieces.popleft()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def head(prefix: str, object_type: str, model: str) -> dict[str, Any]:
    """The fields that an answer, or each chunk of its stream, begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": object_type,
        "created": int(time.time()),
        "model": model,
    }


def usage(answers: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """What the answers to some prompts cost, each prompt counted once."""
    first = [some[0] for some in answers]
    read = sum(c.prompt_tokens for c in first)
    written = sum(len(c.tokens) for some in answers for c in some)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(c.cached for c in first),
            "image_tokens": sum(c.image_tokens for c in first),
            "audio_tokens": sum(c.audio_tokens for c in first),
        },
    }


def besides(completions: Sequence[Completion]) -> dict[str, Any]:
    """What we tell beside OpenAI's fields: the adapter that answered, and the LongRoPE tables."""
    return {"adapter": completions[0].adapter, "rope": completions[0].rope}
