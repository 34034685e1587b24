"""The server as an ASGI application: its routes, and one format for all errors.

>>> app = create_app(engine, Settings("phi"))            # run by uvicorn, or `polyphi serve`
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from polyphi.engine.engine import Engine
from polyphi.media.media import image_types
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.server import Server
from polyphi.serve.anthropic import messages
from polyphi.serve.audio import realtime, transcriptions
from polyphi.serve.http.errors import (
    AnthropicErrorResponse,
    ApiError,
    also_returns,
    body_for,
    default_response,
    responses,
)
from polyphi.serve.http.events import ClientGone
from polyphi.serve.http.fields import validation_error
from polyphi.serve.http.guard import AccessGuard
from polyphi.serve.http.refusals import other_base, unserved
from polyphi.serve.openai import chat, completions, embeddings, lora, stored_responses, tokenize
from polyphi.serve.openai import responses as responses_api
from polyphi.serve.page import page
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import LANGUAGES

CODES = {404: "not_found", 405: "method_not_allowed"}
ANTHROPIC_VERSION = "anthropic-version"
"""The header of Anthropic's clients, which have their own form of the model list."""


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application that serves an engine over OpenAI's routes (docs/server_api.md)."""
    server = Server(engine, settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        server.close()

    app = FastAPI(
        title="polyphi",
        version=version("polyphi"),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        responses={**responses(400, 403, 503), **default_response()},
    )
    app.state.server = server
    _errors(app)
    _health(app, server)
    keyed = responses(401) if settings.keys else {}
    body = {**keyed, **responses(404, 413, 415)}
    for router in (
        chat.routes(server),
        responses_api.routes(server, server.store),
        completions.routes(server),
        embeddings.routes(server),
        transcriptions.routes(server),
    ):
        app.include_router(router, responses={**body, **responses(429)})
    app.include_router(realtime.routes(server))
    app.include_router(
        stored_responses.routes(server, server.store), responses={**keyed, **responses(404)}
    )
    of_anthropic = [400, *([401] if settings.keys else []), 403, 404, 413, 415, 429, 503]
    app.include_router(
        messages.routes(server),
        responses={
            **responses(*of_anthropic, model=AnthropicErrorResponse),
            **default_response(AnthropicErrorResponse),
        },
    )
    app.include_router(_about(server), responses=keyed)
    app.include_router(tokenize.routes(server), responses=body)
    app.include_router(lora.routes(server), responses=body)
    # The last one added runs first.
    app.add_middleware(AccessGuard, settings=settings, quotas=server.quotas)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: HttpRequest, error: ApiError) -> Response:
        path = request.scope["path"]  # a URL would stay in a cache of urllib
        return JSONResponse(body_for(error, path), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        return await api_error(request, validation_error(error))

    @app.exception_handler(HTTPException)
    async def http(request: HttpRequest, error: HTTPException) -> Response:
        status, headers = error.status_code, dict(error.headers or {})
        if status == 405:
            headers["Allow"] = ", ".join(_methods(request))
        return await api_error(
            request,
            ApiError(status, _missing(request, status), code=CODES.get(status), headers=headers),
        )

    @app.exception_handler(ClientGone)
    async def client_gone(request: HttpRequest, error: ClientGone) -> Response:
        return Response(status_code=499)  # only for the log: the client has disconnected


def _missing(request: HttpRequest, status: int) -> str:
    """The message for a request that no route takes."""
    path = request.scope["path"]
    if status not in CODES:
        return "the request can't be read"
    message = f"this address doesn't accept {request.method}"
    if status == 404:
        message = "there is no route at this address"
    if reason := unserved(path):
        return f"{message}: {reason}"
    if _routed(request, path=(other := other_base(path))):
        return f"{message}: expected {other}; change the base URL of the client"
    return message


def _routed(request: HttpRequest, **changes: str) -> bool:
    """Whether there is a route for a request with another path or method."""
    scope = {**request.scope, **changes}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def _methods(request: HttpRequest) -> list[str]:
    """The methods of all routes at a request's address. The framework names those of one route only."""
    methods = [method for method in ("DELETE", "GET", "POST") if _routed(request, method=method)]
    return [*methods, "HEAD"] if "GET" in methods else methods  # guard.py handles HEAD as GET


class Health(BaseModel):
    """The server's state for `/health`. `stage`, `share` and `seconds` are only set while the model loads
    (loading.py)."""

    status: Literal["ok", "unavailable", "loading"]
    stage: str | None = None
    share: float | None = Field(
        None, ge=0, le=1, description="Of the stage, from 0 to 1; null where it is unknown."
    )
    seconds: float | None = None


def _health(app: FastAPI, server: Server) -> None:
    """The routes that need no key."""
    not_yet: dict[int | str, dict[str, Any]] = {
        503: {"model": Health, "description": "Not available, or the model is still loading."}
    }

    @app.get("/", include_in_schema=False)
    async def chat_page(request: HttpRequest) -> Response:
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = page.HEADERS | {"Content-Encoding": "gzip"}
            return Response(page.COMPRESSED, headers=headers)
        return Response(page.PAGE, headers=page.HEADERS)

    @app.get(
        "/live",
        summary="Whether the process responds, also while the model loads",
        response_model=Health,
    )
    async def live() -> Response:
        return _status(True)

    @app.get(
        "/health",
        summary="Whether the engine is running and responds",
        response_model=Health,
        responses=not_yet,
    )
    async def health() -> Response:
        return _status(server.alive)

    @app.get(
        "/ready",
        summary="Whether the server accepts requests",
        response_model=Health,
        responses=not_yet,
    )
    async def ready() -> Response:
        return _status(server.ready)


def _status(ok: bool) -> Response:
    return JSONResponse({"status": "ok" if ok else "unavailable"}, 200 if ok else 503)


def _names_page(
    names: list[str], limit: int, after: str | None, before: str | None
) -> tuple[list[str], bool]:
    """The names of a page in Anthropic's way, and whether more follow in its direction: the first ones after a name, or
    the last ones before one."""
    for name in (after, before):
        if name is not None and name not in names:
            raise ApiError(404, f"there is no model {name!r:.80}", code="model_not_found")
    rest = names[names.index(after) + 1 :] if after is not None else names
    if before is None:
        return rest[:limit], len(rest) > limit
    rest = rest[: rest.index(before)] if before in rest else []
    return rest[-limit:], len(rest) > limit


def _about(server: Server) -> APIRouter:
    router = APIRouter()
    settings, engine = server.settings, server.engine
    config, towers = engine.model.config, engine.model.towers

    @router.get("/version")
    async def server_version() -> dict[str, str]:
        return {"version": version("polyphi")}

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": server.started,
            "owned_by": "polyphi",
            "root": settings.name,
            "parent": None if name in (settings.name, *settings.aliases) else settings.name,
            "max_model_len": engine.longest,
        }

    created = datetime.fromtimestamp(server.started, UTC).isoformat().replace("+00:00", "Z")

    def for_anthropic(name: str) -> dict[str, Any]:
        return {"type": "model", "id": name, "display_name": name, "created_at": created}

    @router.get("/v1/models", summary="The model under all its names, and its adapters as models")
    async def models(
        request: HttpRequest,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
        after_id: Annotated[str | None, Query(max_length=512)] = None,
        before_id: Annotated[str | None, Query(max_length=512)] = None,
    ) -> dict[str, Any]:
        names = [settings.name, *settings.aliases, *server.adapters]
        if ANTHROPIC_VERSION not in request.headers:
            return {"object": "list", "data": [model(name) for name in names]}
        own, has_more = _names_page(names, limit, after_id, before_id)
        return {
            "data": [for_anthropic(name) for name in own],
            "first_id": own[0] if own else None,
            "last_id": own[-1] if own else None,
            "has_more": has_more,
        }

    @router.get("/v1/models/{name:path}", responses=responses(404))
    async def one_model(name: str, request: HttpRequest) -> dict[str, Any]:
        if not name:  # in a request, an empty name means the server's model
            raise ApiError(
                404, "expected the id of a model in the path", param="model", code="model_not_found"
            )
        server.adapter(name, "auto")
        return for_anthropic(name) if ANTHROPIC_VERSION in request.headers else model(name)

    @router.get("/tokenizer_info", summary="The tokenizer's settings and the chat template")
    async def tokenizer_info() -> dict[str, Any]:
        with server.api_errors("model"):
            return engine.processor.tokenizer.config

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses=also_returns("text/plain"),
    )
    async def metrics() -> Response:
        body, content_type = await server.in_thread(server.metrics.render)
        return Response(body, headers={"content-type": content_type})

    @router.get("/props", summary="Capabilities and limits of the server")
    async def props() -> dict[str, Any]:
        limits = (
            "max_image_bytes max_image_pixels max_request_pixels max_audio_bytes max_audio_seconds "
            "max_recording_seconds max_video_bytes max_video_seconds max_video_frames max_document_bytes "
            "max_document_pages max_body_bytes max_parts "
            "max_answers max_tokens"
        )
        defaults = SamplingParams()
        sampling = (
            "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty"
        )
        return {
            "model": settings.name,
            "modalities": {
                **{name: name in towers for name in ("image", "audio", *config.further)},
                "video": "image" in towers and server.media.containers,
            },
            "containers": server.media.containers,
            "documents": server.media.pdfs,
            "image_formats": image_types() if "image" in towers else [],
            "adapters": list(server.adapters),
            "context": engine.longest,
            "languages": dict(LANGUAGES),
            "limits": {name: getattr(settings, name) for name in limits.split()},
            "sampling": {name: getattr(defaults, name) for name in sampling.split()},
            "structured": server.structured,
            "reasoning": settings.reasoning,
            "version": version("polyphi"),
        }

    return router
