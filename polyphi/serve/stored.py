"""The routes of stored responses: their owner reads, lists and deletes them."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.serve.errors import ApiError, responses
from polyphi.serve.server import LARGE, Server
from polyphi.serve.store import ResponseStore, StoredResponse


def routes(server: Server, store: ResponseStore) -> APIRouter:
    router = APIRouter()

    def stored_response(request: HttpRequest, id: str) -> StoredResponse:
        stored = store.get(server.caller(request).client, id)
        if stored is None:
            raise _not_found(id)
        return stored

    @router.get("/v1/responses/{id}", summary="A stored response")
    async def retrieve(id: str, request: HttpRequest, stream: bool = False) -> Response:
        if stream:
            raise ApiError(
                400, "a stored response can't be streamed; leave stream out", param="stream"
            )
        return Response(stored_response(request, id).response, media_type="application/json")

    @router.get("/v1/responses/{id}/input_items", summary="The input items of a stored response")
    async def input_items(
        id: str,
        request: HttpRequest,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        stored, caller = stored_response(request, id), server.caller(request)
        values = await server.in_turn(len(stored.items) > LARGE, caller, json.loads, stored.items)
        return await server.answers.response(_page(values, limit, order, after))

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


def _not_found(id: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {id!r:.80}: it was not stored, was deleted, or was dropped when memory was needed",
        code="response_not_found",
    )


def _page(
    items: list[dict[str, Any]], limit: int, order: Literal["asc", "desc"], after: str | None
) -> dict[str, Any]:
    """`limit` items in an order, from the one after the item with the id `after`."""
    items = items if order == "asc" else items[::-1]
    first = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ApiError(400, f"after: there is no item {after!r:.80}", param="after")
        first = ids.index(after) + 1
    page = items[first : first + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": first + limit < len(items),
    }
