"""JSON bodies: parsed and validated without delaying other requests, and not kept.

>>> router = APIRouter(route_class=JsonRoute)       # its routes receive the validated body as FastAPI's do

Large bodies are parsed in a thread, one at a time, and clients take turns.
"""

import asyncio
import json
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from polyphi.serve.admission.quotas import FairSlots
from polyphi.serve.http.bodies import Body
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.events import unless_disconnected
from polyphi.serve.http.fields import Counts, validation_error
from polyphi.serve.http.json_scanner import BodyPiece

M = TypeVar("M", bound=BaseModel)
LARGE = 16 << 10
"""Bytes above which a body is parsed in the thread."""
PAUSE_FACTOR = 1
"""Pause after a large body was parsed until the next one, as a multiple of the time that parsing took: the parser holds
Python's lock most of the time."""
MAX_NAME = 1000
"""Characters of a name in an object."""
MAX_CHARACTERS = 16_000_000
"""Maximum characters of all strings of a body that aren't media."""
NUMBER_SIZE = 32
"""Bytes of a number in memory."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
CONTAINERS = frozenset({str, dict, list})
"""Types of list elements that are checked; a list of numbers is skipped."""
MARK = secrets.token_hex(16)
"""The beginning, which no client can guess, of the text that replaces a plain piece."""
MARKED = re.compile(rf"{MARK}(\d+);")


class Parser:
    """Parses bodies: small ones at once, large ones in its thread."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._pool = ThreadPoolExecutor(1, "parse")
        self._free_at = 0.0  # when the next large body may be parsed

    async def parse(self, request: Request, model: type[M]) -> M:
        """The validated body of a request. Its bytes are dropped, and what counts for it then is the memory of its
        values. Raises ApiError for an invalid body, and ClientGone if the client disconnects."""
        body: Body = request.state.body
        if not body.json:
            raise ApiError(
                415, "Content-Type must be application/json", code="unsupported_media_type"
            )
        pieces, body.pieces = body.pieces, deque()
        if body.bytes <= LARGE:
            value, size = parse(pieces, model)
        else:
            work = self._in_turn(body.client, parse, pieces, model)
            value, size = await unless_disconnected(request, work)
        body.resize(size)
        return value

    async def _in_turn(self, client: bytes, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        async with self._slots.exclusive(client):
            await asyncio.sleep(self._free_at - loop.time())
            started_at = time.monotonic()
            try:
                return await loop.run_in_executor(self._pool, work, *args)
            finally:
                seconds = time.monotonic() - started_at
                self._free_at = loop.time() + PAUSE_FACTOR * seconds

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


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


def parse(pieces: deque[BodyPiece], model: type[M]) -> tuple[M, int]:
    """The validated value of a body, and the bytes of memory that it takes. Uses up the pieces. Raises ApiError for an
    invalid body."""
    try:
        value, plain = _load(pieces)
    except RecursionError:
        raise ApiError(400, "expected JSON of less depth", code="invalid_json") from None
    except ValueError:
        raise ApiError(400, "expected a JSON body", code="invalid_json") from None
    holder = [value]
    del value
    size, characters = _check(holder, plain)
    counts = Counts()
    try:
        valid = model.model_validate(holder[0], context=counts)
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


def _load(pieces: deque[BodyPiece]) -> tuple[Any, list[str]]:
    """The JSON value, with marks in place of its plain pieces, and the plain pieces."""
    text: list[bytes] = []
    plain: list[list[bytes]] = []
    after_plain = False
    while pieces:
        piece = pieces.popleft()
        if not piece.plain:
            text.append(piece.data)
        elif after_plain:
            plain[-1].append(piece.data)
        else:
            text.append(f"{MARK}{len(plain)};".encode())
            plain.append([piece.data])
        after_plain = piece.plain
    joined = list[str]()
    for group in plain:
        joined.append(b"".join(group).decode("ascii").replace("\\/", "/"))
        group.clear()
    return json.loads(b"".join(text).decode("utf-8-sig")), joined


def _check(holder: list[Any], plain: list[str]) -> tuple[int, int]:
    """The bytes of memory and the characters of a parsed value, after the plain pieces were put in. Raises ApiError for
    strings that can't be encoded as UTF-8, and for long names."""
    stack: list[Any] = [holder]
    size = characters = 0
    while stack:
        item = stack.pop()
        size += sys.getsizeof(item)
        if isinstance(item, dict):
            for name in item:
                if len(name) > MAX_NAME or MARK in name:
                    raise ApiError(
                        400, f"a name in an object has at most {MAX_NAME} characters, found more"
                    )
                _check_text(name)
                characters += len(name)
                size += sys.getsizeof(name)
        elif CONTAINERS.isdisjoint(map(type, item)):
            size += NUMBER_SIZE * len(item)
            continue
        for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
            if isinstance(inner, str):
                if plain and MARK in inner:
                    inner = item[key] = MARKED.sub(lambda match: plain[int(match[1])], inner)
                _check_text(inner)
                characters += len(inner)
                size += sys.getsizeof(inner)
            elif isinstance(inner, dict | list):
                stack.append(inner)
            else:
                size += NUMBER_SIZE
    return size, characters


def _check_text(text: str) -> None:
    if not text.isascii() and SURROGATE.search(text):
        raise ApiError(
            400, "expected text, found half of a surrogate pair (\\ud800 to \\udfff alone)"
        )
