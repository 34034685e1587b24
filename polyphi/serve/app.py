"""The server as an application: its routes, and one shape for everything that goes wrong.

>>> app = create_app(engine, Settings("phi"))            # run by uvicorn, or `polyphi serve`
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyphi.engine.engine import Engine
from polyphi.messages import LANGUAGES, SamplingParams, with_tools
from polyphi.serve import chat, completions, page, speech
from polyphi.serve.answers import Written
from polyphi.serve.errors import OTHERS, ApiError, responses
from polyphi.serve.events import Gone
from polyphi.serve.guard import Guard
from polyphi.serve.schema import DetokenizeRequest, TokenizeRequest, explained, offered
from polyphi.serve.server import LARGE, Server, is_large
from polyphi.serve.settings import Settings

CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application around an engine. What it is asked, it is asked by OpenAI's routes (docs/server.md)."""
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
        responses={**responses(400, 403, 503), **OTHERS},
    )
    app.state.server = server
    _errors(app)
    _health(app, server)
    keyed = responses(401) if settings.keys else {}
    body = {**keyed, **responses(404, 413, 415)}
    for routes in (chat.routes, completions.routes, speech.routes):
        app.include_router(routes(server), responses={**body, **responses(429)})
    app.include_router(_about(server), responses=keyed)
    app.include_router(_tokens(server), responses=body)
    app.add_middleware(Guard, settings=settings)  # the last one added is passed first
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def told(request: HttpRequest, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        return await told(request, explained(error))

    @app.exception_handler(HTTPException)
    async def http(request: HttpRequest, error: HTTPException) -> Response:
        status, allowed = error.status_code, dict(error.headers or {})
        said = {
            404: "there is nothing at this address",
            405: f"this address doesn't take {request.method}",
        }.get(status, "the request can't be read")
        return await told(request, ApiError(status, said, code=CODES.get(status), headers=allowed))

    @app.exception_handler(Gone)
    async def gone(request: HttpRequest, error: Gone) -> Response:
        return Response(status_code=499)  # nobody hears it but the log


class Health(BaseModel):
    """`stage`, `share` and `seconds` only while the model loads (loading.py)."""

    status: Literal["ok", "unavailable", "loading"]
    stage: str | None = None
    share: float | None = Field(
        None, ge=0, le=1, description="Of the stage; null where it isn't known."
    )
    seconds: float | None = None


def _health(app: FastAPI, server: Server) -> None:
    """The routes that need no key."""
    not_yet: dict[int | str, dict[str, Any]] = {
        503: {"model": Health, "description": "No, or not yet: the model is loading."}
    }

    @app.get("/", include_in_schema=False)
    async def chat_page(request: HttpRequest) -> Response:
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = page.HEADERS | {"Content-Encoding": "gzip"}
            return Response(page.COMPRESSED, headers=headers)
        return Response(page.PAGE, headers=page.HEADERS)

    @app.get(
        "/live",
        summary="Whether the process answers, also while the model loads",
        response_model=Health,
    )
    async def live() -> Response:
        return _status(True)

    @app.get(
        "/health",
        summary="Whether the server is alive",
        response_model=Health,
        responses=not_yet,
    )
    async def health() -> Response:
        return _status(server.alive)

    @app.get(
        "/ready", summary="Whether it takes requests", response_model=Health, responses=not_yet
    )
    async def ready() -> Response:
        return _status(server.ready)


def _status(ok: bool) -> Response:
    return JSONResponse({"status": "ok" if ok else "unavailable"}, 200 if ok else 503)


def _about(server: Server) -> APIRouter:
    router = APIRouter()
    settings, engine = server.settings, server.engine
    config = engine.model.config

    @router.get("/version")
    async def told_version() -> dict[str, str]:
        return {"version": version("polyphi")}

    def model(name: str) -> dict[str, Any]:
        found = {
            "id": name,
            "object": "model",
            "created": server.started,
            "owned_by": "polyphi",
            "root": settings.name,
            "parent": None if name == settings.name else settings.name,
            "max_model_len": engine.longest,
        }
        return found

    @router.get("/v1/models", summary="The model, and its adapters as models")
    async def models() -> dict[str, Any]:
        names = [settings.name, *config.adapters]
        return {"object": "list", "data": [model(name) for name in names]}

    @router.get("/v1/models/{name:path}", responses=responses(404))
    async def one_model(name: str) -> dict[str, Any]:
        if not name:  # of a request, an empty name means the server's model
            raise ApiError(
                404, "expected the id of a model in the path", param="model", code="model_not_found"
            )
        server.adapter(name, "auto")
        return model(name)

    @router.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        body, kind = await server.in_thread(server.metrics.render)
        return Response(body, headers={"content-type": kind})

    @router.get("/props", summary="What the server can do and what it takes")
    async def props() -> dict[str, Any]:
        limits = (
            "max_image_bytes max_image_pixels max_audio_bytes max_audio_seconds max_recording_seconds "
            "max_body_bytes max_parts max_answers max_tokens"
        )
        defaults = SamplingParams()
        sampling = (
            "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty"
        )
        return {
            "model": settings.name,
            "modalities": {"image": config.vision is not None, "audio": config.audio is not None},
            "adapters": list(config.adapters),
            "context": engine.longest,
            "languages": dict(LANGUAGES),
            "limits": {name: getattr(settings, name) for name in limits.split()},
            "sampling": {name: getattr(defaults, name) for name in sampling.split()},
            "structured": server.structured,
            "version": version("polyphi"),
        }

    return router


def _tokens(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/tokenize",
        summary="Tokens of a text or a conversation, before anything runs",
        responses=responses(429),
    )
    async def tokenize(wanted: TokenizeRequest, request: HttpRequest) -> Response:
        server.adapter(wanted.model, "auto")
        if (wanted.prompt is None) == (wanted.messages is None):
            raise ApiError(400, "expected either prompt or messages", param="prompt")
        room = {"max_model_len": server.engine.longest}
        if (prompt := wanted.prompt) is not None:
            with server.explained("prompt"):
                large = len(prompt) > LARGE
                caller = server.caller(request)
                ids, total = await server.in_turn(large, caller, _ids, server, prompt)
            count = {"text_tokens": total, "image_tokens": 0, "audio_tokens": 0}
            return await server.answers.response({"tokens": ids, "count": total, **count, **room})
        turns = wanted.messages or []
        with (
            server.admit(server.caller(request)) as ticket,
            server.explained("messages", turns),
            server.media.request() as media,
        ):
            messages = await chat.conversation(server, media, turns)
            messages = with_tools(messages, offered(wanted.tools or ()))
            count_tokens = server.engine.processor.count
            large = is_large(messages)
            found = await server.in_turn(large, ticket.caller, count_tokens, messages)
        count = {
            "text_tokens": found.text,
            "image_tokens": found.image,
            "audio_tokens": found.audio,
        }
        return JSONResponse({"count": found.total, **count, **room})

    @router.post("/detokenize", summary="The text of tokens")
    async def detokenize(wanted: DetokenizeRequest, request: HttpRequest) -> Response:
        server.adapter(wanted.model, "auto")
        large = len(wanted.tokens) > LARGE
        caller = server.caller(request)
        text = await server.in_turn(large, caller, _text, server, wanted.tokens)
        return await server.answers.response({"prompt": text})

    return router


def _ids(server: Server, text: str) -> tuple[list[int] | Written, int]:
    """The ids of a text, and how many they are. Those of a large text are written slice by slice."""
    tokenizer, total = server.engine.processor.tokenizer, 0
    if len(text) <= LARGE:
        return (ids := tokenizer.encode(text)), len(ids)

    def slices() -> Iterator[list[int]]:
        nonlocal total
        for ids in tokenizer.encode_slices(text):
            total += len(ids)
            yield ids

    return Written.joined(slices()), total


def _text(server: Server, ids: Sequence[int]) -> str:
    """The text of ids. Raises ApiError for ids that the vocabulary doesn't have."""
    tokenizer = server.engine.processor.tokenizer
    known = tokenizer.vocab_size
    if (bad := next((i for i in ids if not 0 <= i < known), None)) is not None:
        raise ApiError(
            400, f"tokens: ids lie between 0 and {known - 1}, found {bad}", param="tokens"
        )
    return tokenizer.decode(ids)
