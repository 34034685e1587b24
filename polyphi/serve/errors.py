"""What goes wrong, in the one shape that clients know: `{"error": {"message", "type", "param", "code"}}`.

>>> raise ApiError(400, "temperature must be from 0 to 100, found -1", param="temperature")
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from polyphi.engine.memory import OutOfMemory
from polyphi.engine.results import NotFinite

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets `status` and this message instead of an answer. `param` is the dotted path of the part that
    is wrong (`messages[1].content[0].image_url.url`), `code` a word that programs look at. Messages go to strangers:
    they never hold a path, an address or what a library printed."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, kind)
        found = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": found}


class Problem(BaseModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The path of the part that is wrong.")
    code: str | None = Field(description="A word for programs.")


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: Problem


MEANINGS = {
    400: "The request can't be read, or a value in it is wrong; `param` names it.",
    401: "A key of this server is needed.",
    403: "The server isn't called by this name, or the page of another origin may not ask.",
    404: "There is no such model.",
    413: "The body, or something in it, is too large.",
    415: "The body is of another type, or an image or audio in it is.",
    429: "As many requests wait as may; `Retry-After` says when to come again.",
    503: "The model is loading, the server is stopping, or it is short of memory.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors that a route returns, as FastAPI describes them in /openapi.json."""
    return {
        status: {"model": ErrorResponse, "description": MEANINGS[status]} for status in statuses
    }


OTHERS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Any other error."}
}


def failed(error: Exception) -> ApiError:
    """What a client may know of an error that ended its request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemory):
        return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "5"})
    if isinstance(error, NotFinite):
        return ApiError(500, str(error), code="not_finite")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, "the model failed; the server's log says why", code="model_failed")
