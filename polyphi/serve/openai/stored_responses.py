"""The routes of stored responses: their owner reads, lists and deletes them."""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polyphi.serve.admission.quotas import QuotaExceeded
from polyphi.serve.answer.server import Server
from polyphi.serve.answer.store import ResponseStore, StoredItem, StoredResponse
from polyphi.serve.http.errors import STREAMED, ApiError, responses
from polyphi.serve.http.events import Events
from polyphi.serve.http.response_json import ChunkedJson, EncodedJson, json_pieces, too_many_unread
from polyphi.serve.openai.response_items import Event, stored_events
from polyphi.serve.openai.streams import named_stream

MAX_STREAMED, VALUE_BYTES = 4 << 20, 16
"""Bytes of a stored response that is read as a stream, and the memory of its values for each of them (6 for
log-probabilities, 16 for empty lists): they count as a response that waits to be read."""


class StoredJson(ChunkedJson):
    """JSON made of pieces of a stored response, which are sent without a copy. While they are being sent, they count
    in the store, also if the response is removed from it."""

    def __init__(
        self, store: ResponseStore, owner: bytes, stored: StoredResponse, pieces: Iterable[bytes]
    ) -> None:
        super().__init__(pieces)
        self._store, self._owner, self._stored = store, owner, stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._store.reading(self._owner, self._stored):
            await super().__call__(scope, receive, send)


def routes(server: Server, store: ResponseStore) -> APIRouter:
    router = APIRouter()

    def stored_response(request: HttpRequest, id: str) -> tuple[bytes, StoredResponse]:
        """A response and its owner."""
        owner = server.caller(request).client
        stored = store.get(owner, id)
        if stored is None:
            raise _not_found(id)
        return owner, stored

    @router.get("/v1/responses/{id}", summary="A stored response", responses=STREAMED)
    async def retrieve(
        id: str, request: HttpRequest, stream: bool = False, starting_after: int | None = None
    ) -> Response:
        owner, stored = stored_response(request, id)
        if not stream:
            return StoredJson(store, owner, stored, stored.response)
        if starting_after is not None:
            raise ApiError(
                400,
                "starting_after isn't supported: a stored response has fewer and longer deltas than its first stream; "
                "leave it out, and replace what arrived before",
                param="starting_after",
            )
        if (size := sum(map(len, stored.response))) > MAX_STREAMED:
            raise ApiError(
                400,
                f"expected a response of at most {MAX_STREAMED:,} bytes for a stream, found {size:,}; leave stream out",
                param="stream",
            )
        try:
            request.state.bytes.grow(VALUE_BYTES * size)
        except QuotaExceeded as full:
            raise too_many_unread(full) from None
        response = await server.answers.in_thread(lambda: json.loads(b"".join(stored.response)))
        events = named_stream(server.answers, _numbered(response), _failure)
        return Events(events, lambda: None)

    @router.get("/v1/responses/{id}/input_items", summary="The input items of a stored response")
    async def input_items(
        id: str,
        request: HttpRequest,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        owner, stored = stored_response(request, id)
        return StoredJson(store, owner, stored, _page(stored.items, limit, order, after))

    @router.delete("/v1/responses/{id}", summary="Delete a stored response")
    async def delete(id: str, request: HttpRequest) -> dict[str, Any]:
        if not store.delete(server.caller(request).client, id):
            raise _not_found(id)
        return {"id": id, "object": "response", "deleted": True}

    @router.post(
        "/v1/responses/{id}/cancel",
        summary="Refused: no response runs in the background",
        responses=responses(413, 415),
    )
    async def cancel(id: str, request: HttpRequest) -> Response:
        stored_response(request, id)
        raise ApiError(
            400,
            "only responses with background: true can be cancelled, which this server doesn't support; close the "
            "connection to end an answer",
        )

    return router


async def _numbered(response: dict[str, Any]) -> AsyncGenerator[Event]:
    for number, event in enumerate(stored_events(response)):
        yield {**event, "sequence_number": number}


def _failure(error: ApiError) -> Event:
    return {"type": "error", "message": error.message, "code": error.code, "param": error.param}


def _not_found(id: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {id!r:.80}: it was not stored, was deleted, or was dropped when memory was needed",
        code="response_not_found",
    )


def _page(
    items: Sequence[StoredItem], limit: int, order: Literal["asc", "desc"], after: str | None
) -> list[bytes]:
    """The JSON of `limit` items in an order, from the one after the item with the id `after`."""
    items = items if order == "asc" else items[::-1]
    first = 0
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise ApiError(400, f"after: there is no item {after!r:.80}", param="after")
        first = ids.index(after) + 1
    page = items[first : first + limit]
    data = [piece for item in page for piece in (b",", *item.json)][1:]
    fields = {
        "object": "list",
        "data": EncodedJson((b"[", *data, b"]")),
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": first + limit < len(items),
    }
    return list(json_pieces(fields))
