"""Embeddings of texts in OpenAI's format: the mean of the language model's last hidden states, scaled to length 1.

The model was trained to continue texts, not to compare them: dedicated embedding models rank better. Each response says
so (`pooling`).
"""

import base64
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.serve.answer.server import AdmittedRequest, Server
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.events import unless_disconnected
from polyphi.serve.http.fields import Fields, Refused
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.openai.completions import MAX_PROMPTS, text_rows
from polyphi.serve.openai.schema import Prompts
from polyphi.types.batch import Batch
from polyphi.types.sampling import SamplingParams

MAX_INPUTS = 2048
"""Texts of a request, as in OpenAI's API."""
POOLING = "mean of the language model's last hidden states; it was not trained for embeddings"
SAMPLING = SamplingParams(max_tokens=0, embed=True)


class EmbeddingRequest(Fields):
    ignored = frozenset({"user", "input_type", "add_special_tokens", "priority", "request_id"})
    refused: ClassVar[Refused] = {"truncate_prompt_tokens": (), "messages": ()}

    model: str | None = Field(default=None, max_length=512)
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None, ge=1, description="Fewer: the first ones, scaled to length 1 again."
    )


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/embeddings", summary="Mean hidden states of texts")
    async def embeddings(body: EmbeddingRequest, request: HttpRequest) -> Response:
        adapter = server.adapter(body.model, "none")
        size = server.engine.model.config.decoder.hidden_size
        count = body.dimensions or size
        if count > size:
            raise ApiError(
                400, f"dimensions: expected at most {size}, found {count}", param="dimensions"
            )
        with server.admit(request) as admitted:
            admitted.use_adapter(adapter)
            rows = await unless_disconnected(
                request,
                text_rows(server, admitted.caller, body.input, adapter, "input", MAX_INPUTS),
            )
            admitted.reserve(sum(row.nbytes for row in rows))
            server.log_prompt(request, body.input)
            body.input = ""
            admitted.keep(rows)
            return await unless_disconnected(request, _answer(server, admitted, body, rows, count))

    return router


async def _answer(
    server: Server,
    admitted: AdmittedRequest,
    body: EmbeddingRequest,
    rows: Sequence[Batch],
    count: int,
) -> Response:
    """The vectors of the rows, which enter the engine in groups: its scheduler looks at all that wait in each step."""
    tokens = sum(map(len, rows))
    data: list[Any] = []
    for first in range(0, len(rows), MAX_PROMPTS):
        for job in await server.submit(admitted, rows[first : first + MAX_PROMPTS], SAMPLING):
            async for _ in job:
                pass
            (completion,) = job.answers()
            assert completion.embedding is not None
            vector = completion.embedding[:count]
            build = partial(_entry, len(data), vector, body.encoding_format)
            data.append(await server.answers.build_part(build, count))
    return await server.answers.response(
        {
            "object": "list",
            "data": data,
            "model": server.adapters.model_name(body.model),
            "pooling": POOLING,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _entry(number: int, values: Sequence[float], form: str) -> dict[str, Any]:
    length = math.hypot(*values) or 1.0
    scaled = np.array(values, dtype="<f4") / np.float32(length)
    encoded = base64.b64encode(scaled.tobytes()).decode() if form == "base64" else scaled.tolist()
    return {"object": "embedding", "index": number, "embedding": encoded}
