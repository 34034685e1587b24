"""Errors in OpenAI's format, `{"error": {"message", "type", "param", "code"}}`, and on Anthropic's routes in theirs.

>>> raise ApiError(400, "temperature must be from 0 to 100, found -1", param="temperature")
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from polyphi.decoding.structured import GrammarProcessEnded
from polyphi.devices.memory import OutOfMemory
from polyphi.engine.added_adapters import UnknownAdapter
from polyphi.engine.encoders import EncoderError
from polyphi.engine.results import NotFinite
from polyphi.engine.rows import AnswerTooLong, PromptTooLong

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response with `status` and a message. `param`: dotted path of the invalid part
    (`messages[1].content[0].image_url.url`); `code`: a stable identifier for programs. Messages go to untrusted
    clients: they never contain a file path, an address or a library's output."""

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
        type_ = "server_error" if self.status >= 500 else "invalid_request_error"
        type_ = TYPES.get(self.status, type_)
        fields = {"message": self.message, "type": type_, "param": self.param, "code": self.code}
        return {"error": fields}


ANTHROPIC = "/v1/messages"
"""The path of Anthropic's routes, whose errors have another format."""
ANTHROPIC_TYPES = {
    **TYPES,
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    503: "overloaded_error",
}


NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""The details of an error about the field `thread`: Anthropic's clients then send the whole conversation without it."""


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """An error in Anthropic's format: `{"type": "error", "error": {"type", "message", ...}}`."""
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    fields = {**error.body["error"], "type": ANTHROPIC_TYPES.get(error.status, default)}
    if error.param == "thread":
        fields["details"] = NO_THREADS
    return {"type": "error", "error": fields}


def body_for(error: ApiError, path: str) -> dict[str, Any]:
    """The body of an error in the format of the API at a path."""
    is_anthropic = path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/")
    return anthropic_body(error) if is_anthropic else error.body


class Problem(BaseModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="Dotted path of the invalid part.")
    code: str | None = Field(description="A stable identifier for programs.")


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: Problem


class AnthropicProblem(Problem):
    details: dict[str, Any] | None = Field(
        default=None, description="For programs, of some errors: with a code, `error_code`."
    )


class AnthropicErrorResponse(ErrorResponse):
    """The body of every error of Anthropic's routes."""

    type: Literal["error"]
    error: AnthropicProblem


DESCRIPTIONS = {
    400: "The request can't be parsed, or a value in it is invalid; `param` names it.",
    401: "An API key of this server is required.",
    403: "The Host header doesn't name this server, or the web page's origin or an adapter's folder isn't allowed.",
    404: "The model, the adapter or the stored response doesn't exist.",
    413: "The body, or a part of it, is too large.",
    415: "The body, or an image or audio in it, has an unsupported type.",
    429: "The request queue is full; `Retry-After` says when to retry.",
    503: "The model is loading, the server is stopping or out of memory, or the system has ended a grammar's process.",
}


def responses(
    *statuses: int, model: type[ErrorResponse] = ErrorResponse
) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, in FastAPI's form for /openapi.json."""
    return {status: {"model": model, "description": DESCRIPTIONS[status]} for status in statuses}


def also_returns(*content_types: str) -> dict[int | str, dict[str, Any]]:
    """Further content types of a route, in FastAPI's form for /openapi.json."""
    return {200: {"content": {content_type: {} for content_type in content_types}}}


STREAMED = also_returns("text/event-stream")


def default_response(model: type[ErrorResponse] = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    return {"default": {"model": model, "description": "Any other error."}}


def context_exceeded(error: PromptTooLong | AnswerTooLong, context: int, param: str) -> ApiError:
    """The ApiError for a request that exceeds the context. Clients that then shorten a conversation recognize it by the
    phrases of OpenAI's and Anthropic's messages, not by its code."""
    start = "prompt is too long: " if isinstance(error, PromptTooLong) else ""
    message = f"{start}{error}; this model's maximum context length is {context} tokens"
    return ApiError(400, message, param=param, code="context_length_exceeded")


def as_api_error(error: Exception) -> ApiError:
    """The ApiError that a client receives for an error that ended its request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfMemory):
        return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "5"})
    if isinstance(error, GrammarProcessEnded):
        headers = {"Retry-After": "5"}
        return ApiError(503, str(error), code="grammar_process_ended", headers=headers)
    if isinstance(error, EncoderError):
        return ApiError(500, str(error), code="encoder_failed")
    if isinstance(error, NotFinite):
        return ApiError(500, str(error), code="not_finite")
    if isinstance(error, UnknownAdapter):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    return ApiError(500, "the model failed; the server's log has the reason", code="model_failed")
