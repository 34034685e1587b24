"""How responses are written: JSON encoding, server-sent events, usage counts, and the fields beyond OpenAI's.

Large JSON is built and encoded in a separate thread, with encoder calls of a few values each: the encoder holds
Python's global lock for a whole call, and all other threads wait for that lock.

>>> writer = Writer()
>>> logprobs = await writer.build_part(lambda: lists_of(tokens), size=len(tokens))    # large ones in the thread
>>> return await writer.response({"text": text, "logprobs": logprobs})

Large responses are sent in pieces, as fast as the client reads. Until they are sent, they count as bytes of the
request.
"""

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from polyphi.serve.admission.quotas import QuotaExceeded
from polyphi.serve.admission.settings import MIB
from polyphi.serve.http.errors import ApiError, body_for
from polyphi.types.completion import Completion

T = TypeVar("T")
SMALL = 2048
"""Maximum values that one encoder call encodes: about a millisecond of work."""
CHARACTERS = 32
"""Characters of a string that take about as long to encode as one value."""
NUMBERS = frozenset({int, float, bool, type(None)})
"""Types whose values count as one value each."""
CHUNK_BYTES = 64 << 10
"""Bytes of a large response that are sent at once."""
RETRY_SECONDS = 10
"""Seconds after which a client with too many unread responses may retry."""


@dataclass(frozen=True)
class EncodedJson:
    """A value whose JSON is already encoded, in `pieces`."""

    pieces: tuple[bytes, ...]

    @classmethod
    def joined(cls, parts: Iterable[Sequence[Any]]) -> "EncodedJson":
        """One list with the elements of all `parts`; only one part is in memory at a time."""
        inner = (piece for part in parts if part for piece in (b",", *_inner(part)))
        next(inner, None)  # the comma before the first one
        return cls((b"[", *_chunks(inner), b"]"))


def json_pieces(value: Any) -> Iterator[bytes]:
    """The JSON of a value in pieces of about `SMALL` values each; joined, they equal the output of `JSONResponse`."""
    if isinstance(value, EncodedJson):
        yield from value.pieces
    elif _size(value) <= SMALL:
        yield _dumps(value)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), SMALL * CHARACTERS):
            yield _dumps(value[start : start + SMALL * CHARACTERS])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        for number, (key, item) in enumerate(value.items()):
            yield (b"," if number else b"{") + _dumps(key) + b":"
            yield from json_pieces(item)
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
    """Groups of elements for one encoder call each; a large element is a group of one."""
    for start in range(0, len(elements), SMALL):
        window = elements[start : start + SMALL]
        if NUMBERS.issuperset(map(type, window)):
            yield window
            continue
        group: list[Any] = []
        size = 0
        for element in window:
            element_size = _size(element)
            if group and size + element_size > SMALL:
                yield group
                group, size = [], 0
            group.append(element)
            size += element_size
        yield group


def _size(value: Any, limit: int = SMALL) -> int:
    """The number of values inside `value`; counting stops above `limit`."""
    if isinstance(value, EncodedJson):
        return limit + 1
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS
    if not isinstance(value, dict | list | tuple):
        return 1
    size = 1
    for item in value.values() if isinstance(value, dict) else value:
        size += _size(item, limit - size)
        if size > limit:
            break
    return size


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of all pieces; pieces below `CHUNK_BYTES` bytes are joined."""
    chunk = bytearray()
    for piece in pieces:
        if len(piece) >= CHUNK_BYTES:
            if chunk:
                yield bytes(chunk)
                chunk = bytearray()
            yield piece
            continue
        chunk += piece
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk = bytearray()
    if chunk:
        yield bytes(chunk)


class Writer:
    """Builds and encodes responses: small ones directly, large ones in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write answers")

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def build_part(self, build: Callable[[], T], size: int) -> T | EncodedJson:
        """The result of `build`, a part of a response with about `size` values; a large part comes already encoded."""
        if size <= SMALL:
            return build()
        return await self.in_thread(lambda: EncodedJson(tuple(_chunks(json_pieces(build())))))

    async def response(self, value: Any) -> Response:
        """A JSON response. A large one is replaced by an error if its client has too many responses to read."""
        if _size(value) <= SMALL:
            return JSONResponse(value)
        return CountedJson((await self.encoded(value)).pieces)

    async def event(self, value: Any, name: str | None = None) -> AsyncIterator[bytes]:
        """A server-sent event in pieces; those of a large one are encoded when the client has read the piece before."""
        if _size(value) <= SMALL:
            yield event(value, name)
            return
        pieces = _chunks(chain((_event_start(name),), json_pieces(value), (b"\n\n",)))
        while (piece := await self.in_thread(lambda: next(pieces, None))) is not None:
            yield piece

    async def encoded(self, value: Any) -> EncodedJson:
        """A value as JSON."""
        if _size(value) <= SMALL:
            return EncodedJson((_dumps(value),))
        return await self.in_thread(lambda: EncodedJson(tuple(_chunks(json_pieces(value)))))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in the encoding thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class ChunkedJson(Response):
    """A JSON response that is sent piece by piece, as fast as the client reads."""

    media_type = "application/json"

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = deque(pieces)
        self._size = sum(map(len, self._pieces))
        super().__init__(headers={"content-length": str(self._size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        while self._pieces:
            piece = self._pieces.popleft()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.piece_sent(scope, len(piece))
        await send({"type": "http.response.body", "body": b""})

    def piece_sent(self, scope: Scope, size: int) -> None:
        """Do nothing. A subclass overrides this method, which is called after each piece was passed on."""


class CountedJson(ChunkedJson):
    """A JSON response in pieces to which nothing else refers: until they are sent, they count in the reservation of the
    request. Where there is too little memory, an error is sent instead."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["state"]["bytes"].grow(self._size)
        except QuotaExceeded as full:
            self._pieces.clear()
            error = too_many_unread(full)
            refusal = JSONResponse(body_for(error, scope["path"]), error.status, error.headers)
            await refusal(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def piece_sent(self, scope: Scope, size: int) -> None:
        scope["state"]["bytes"].grow(-size)


def too_many_unread(full: QuotaExceeded) -> ApiError:
    """The error for a client that has too many responses to read, or where all clients have."""
    clients, status = ("this client", 429) if full.by_client else ("all clients", 503)
    return ApiError(
        status,
        f"requests of {clients} have {full.in_use / MIB:,.1f} MiB of memory, and this response would add "
        f"{full.amount / MIB:,.1f} MiB to at most {full.limit / MIB:,.0f} MiB; read or close the others, then try "
        "again",
        code="unread_responses",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def event(body: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    return _event_start(name) + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _event_start(name: str | None) -> bytes:
    return f"event: {name}\ndata: ".encode() if name else b"data: "


def base_fields(prefix: str, object_type: str, model: str) -> dict[str, Any]:
    """The first fields of a response and of each chunk of its stream."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": object_type,
        "created": int(time.time()),
        "model": model,
    }


def token_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The counts of the `usage` field."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage(answers: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """The `usage` field for the answers to one or more prompts; each prompt counts once."""
    first_completions = [completions[0] for completions in answers]
    prompt_tokens = sum(completion.prompt_tokens for completion in first_completions)
    completion_tokens = sum(
        len(completion.tokens) for completions in answers for completion in completions
    )
    reasoning_tokens = sum(
        completion.reasoning_tokens for completions in answers for completion in completions
    )
    inputs = Counter({"image": 0, "audio": 0})
    for completion in first_completions:
        inputs.update(completion.input_tokens)
    return {
        **token_usage(prompt_tokens, completion_tokens),
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "prompt_tokens_details": {
            "cached_tokens": sum(completion.cached for completion in first_completions),
            **{f"{name}_tokens": count for name, count in inputs.items()},
        },
    }


def extra_fields(completions: Sequence[Completion]) -> dict[str, Any]:
    """The fields beyond OpenAI's: the adapter that was used, and the LongRoPE tables."""
    return {"adapter": completions[0].adapter, "rope": completions[0].rope}
