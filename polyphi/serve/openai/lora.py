"""The routes that load and unload adapters, as vLLM has them."""

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from polyphi.serve.answer.server import Server
from polyphi.serve.http.errors import also_returns
from polyphi.serve.http.fields import Fields
from polyphi.serve.http.json_parser import JsonRoute

TEXT = also_returns("text/plain")


class LoadAdapterRequest(Fields):
    ignored = frozenset({"base_model_name"})
    refused = {"is_3d_lora_weight": (False,)}  # noqa: RUF012

    lora_name: str = Field(min_length=1, max_length=256)
    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool | None = None


class UnloadAdapterRequest(Fields):
    ignored = frozenset({"lora_int_id"})

    lora_name: str = Field(min_length=1, max_length=256)


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)

    @router.post(
        "/v1/load_lora_adapter",
        summary="Load an adapter, which becomes a model",
        response_class=PlainTextResponse,
        responses=TEXT,
    )
    async def load(body: LoadAdapterRequest) -> Response:
        await server.adapters.load(body.lora_name, body.lora_path, in_place=bool(body.load_inplace))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter",
        summary="Unload an adapter when the requests with it have ended",
        response_class=PlainTextResponse,
        responses=TEXT,
    )
    async def unload(body: UnloadAdapterRequest) -> Response:
        await server.adapters.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router
