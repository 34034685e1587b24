"""JSON bodies: parsed and validated without delaying other requests, and not kept.

>>> router = APIRouter(route_class=JsonRoute)       # its routes receive the validated body as FastAPI's do

Large bodies are parsed in a thread, one at a time, and clients take turns. Python's parser holds the lock of all
threads, so what would take it long is refused before (`checked`).
"""

import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from polyphi.serve.admission.threads import Threads
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.events import unless_disconnected
from polyphi.serve.http.fields import Counts, validation_error

M = TypeVar("M", bound=BaseModel)
LARGE = 16 << 10
"""Bytes above which a body is parsed in the thread."""
PAUSE_FACTOR = 1
"""Pause after a large body was parsed until the next one, as a multiple of the time that parsing took."""
MAX_VALUES, MAX_OBJECTS, MAX_LISTS, MAX_NAMES = 1_100_000, 20_000, 20_000, 100_000
"""Maximum numbers of a body's values (numbers, strings and so on), objects, lists, and names in objects. Parsing that
many takes 0.1 s."""
MAX_OUTSIDE = 12 << 20
"""Bytes outside of strings: numbers, brackets and blanks."""
MAX_TEXT = 24 << 20
"""Bytes besides long strings without escapes, as base64 media are: four million characters of any script."""
MAX_ESCAPES = 6_000_000
"""Escapes in strings. Parsing that many takes half a second."""
BLOCK = 256 << 10
"""Bytes that are checked at once."""
LONG = 4096
"""Bytes of a long string."""
PRINTABLE = bytes(range(0x20, 0x7F))
MAX_NAME = 1000
"""Characters of a name in an object."""
MAX_CHARACTERS = 16_000_000
"""Maximum characters of all strings of a body that aren't media."""
NUMBER_SIZE = 32
"""Bytes of a number in memory."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
CONTAINERS = frozenset({str, dict, list})
"""Types of list elements that are checked; a list of numbers is skipped."""


class Parser:
    """Parses bodies: small ones at once, large ones in its thread."""

    def __init__(self) -> None:
        self._threads = Threads(1, "parse")
        self._free_at = 0.0  # when the next large body may be parsed

    async def parse(self, request: Request, model: type[M]) -> M:
        """The validated body of a request. Its bytes are dropped, and what counts for it then is the memory of its
        values. Raises ApiError for an invalid body, and ClientGone if the client disconnects."""
        content_type = request.headers.get("content-type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise ApiError(
                415, "Content-Type must be application/json", code="unsupported_media_type"
            )
        body, request.state.body = request.state.body, bytearray()
        if len(body) <= LARGE:
            value, size = parse(body, model)
        else:
            work = self._threads.run(request.state.client, self._parse_large, body, model)
            value, size = await unless_disconnected(request, work)
        request.state.bytes.resize(size)
        return value

    def _parse_large(self, body: bytearray, model: type[M]) -> tuple[M, int]:
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        start = time.monotonic()
        try:
            return parse(body, model)
        finally:
            end = time.monotonic()
            self._free_at = end + PAUSE_FACTOR * (end - start)

    def close(self) -> None:
        self._threads.close()


class JsonRoute(APIRoute):
    """A route of the app whose body `Server.parser` parses. FastAPI would do so in the event loop, and keep the bytes
    and the parsed values until the response has ended."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = self.body_field.field_info.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)

        async def handler(request: Request) -> Response:
            value = await request.app.state.server.parser.parse(request, model)
            return await handle(ParsedRequest(request, value))

        return handler


class ParsedRequest(Request):
    """A request whose body is parsed and validated already."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._value: BaseModel | None = value

    async def body(self) -> bytes:
        return b"{}"  # FastAPI calls `json` where there is a body

    async def json(self) -> Any:
        value, self._value = self._value, None
        return value


def parse(body: bytearray, model: type[M]) -> tuple[M, int]:
    """The validated value of a body, and the bytes of memory that it takes. Empties the body. Raises ApiError for an
    invalid body."""
    try:
        text = checked(body).decode("utf-8-sig")
        body.clear()
        value = json.loads(text)
        del text
    except RecursionError:
        raise ApiError(400, "expected JSON of less depth", code="invalid_json") from None
    except ValueError:
        raise ApiError(400, "expected a JSON body", code="invalid_json") from None
    finally:
        body.clear()
    size, characters = _check([value])
    counts = Counts()
    try:
        valid = model.model_validate(value, context=counts)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise validation_error(RequestValidationError(errors)) from None
    if characters - counts.media > MAX_CHARACTERS:
        raise ApiError(
            413,
            f"a body has at most {MAX_CHARACTERS:,} characters of text besides images and audio, found "
            f"{characters - counts.media:,}",
        )
    return valid, size


def checked(text: bytes | bytearray) -> bytes:
    """The JSON text, with `\\/` as `/`. Raises ApiError 413 for one that would take the parser long: by what it has
    outside of strings, and by its strings. Invalid JSON is left to the parser."""
    limits = {
        "objects": MAX_OBJECTS,
        "lists": MAX_LISTS,
        "names in objects": MAX_NAMES,
        "values": MAX_VALUES,
        "bytes outside of strings": MAX_OUTSIDE,
        "escapes": MAX_ESCAPES,
        "bytes in addition to images and audio": MAX_TEXT,
    }
    counts = dict.fromkeys(limits, 0)
    blocks: list[bytes] = []
    start, in_string = 0, False
    while start < len(text):  # by blocks, since other threads wait for each of these calls
        block = bytes(text[start : start + BLOCK])
        # Equally long, so that a quotation mark begins or ends a string.
        masked = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        if masked.endswith(b"\\") and len(block) == BLOCK:  # its character is in the next block
            block, masked = block[:-1], masked[:-1]
        start += len(block)
        if b"\\\\" not in block:
            block = block.replace(b"\\/", b"/")  # as some libraries write base64
        parts = masked.split(b'"')
        outside = b"".join(parts[in_string::2])
        strings = parts[not in_string :: 2]
        in_string ^= len(parts) % 2 == 0
        objects, lists = outside.count(b"{"), outside.count(b"[")
        plain = [part for part in strings if len(part) >= LONG and _is_plain(part)]
        for what, count in zip(
            limits,
            (
                objects,
                lists,
                outside.count(b":"),
                objects + lists + outside.count(b","),
                len(outside),
                block.count(b"\\"),
                len(masked) - sum(map(len, plain)),
            ),
            strict=True,
        ):
            counts[what] += count
            if counts[what] > limits[what]:
                raise ApiError(413, f"a JSON body has at most {limits[what]:,} {what}, found more")
        blocks.append(block)
    return b"".join(blocks)


def _is_plain(part: bytes) -> bool:
    """Whether a part of a string has only printable ASCII, and no escapes but `\\/`."""
    return part.count(b"\\") == part.count(b"\\/") and not part.translate(None, PRINTABLE)


def _check(stack: list[Any]) -> tuple[int, int]:
    """The bytes of memory and the characters of a parsed value, the only one in `stack`. Raises ApiError for strings
    that can't be encoded as UTF-8, and for long names."""
    size = characters = 0

    def add_text(text: str) -> None:
        nonlocal size, characters
        if not text.isascii() and SURROGATE.search(text):
            raise ApiError(
                400, "expected text, found half of a surrogate pair (\\ud800 to \\udfff alone)"
            )
        size += sys.getsizeof(text)
        characters += len(text)

    while stack:
        item = stack.pop()
        if isinstance(item, str):
            add_text(item)
        elif isinstance(item, dict):
            size += sys.getsizeof(item)
            for name in item:
                if len(name) > MAX_NAME:
                    raise ApiError(
                        400, f"a name in an object has at most {MAX_NAME} characters, found more"
                    )
                add_text(name)
            stack += item.values()
        elif isinstance(item, list):
            size += sys.getsizeof(item)
            if CONTAINERS.isdisjoint(map(type, item)):
                size += NUMBER_SIZE * len(item)
            else:
                stack += item
        else:
            size += NUMBER_SIZE
    return size, characters
