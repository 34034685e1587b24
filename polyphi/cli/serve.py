"""`polyphi serve`: the HTTP server and its chat page."""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from polyphi.cli.model_check import check_model
from polyphi.cli.options import (
    DeviceOption,
    KvOption,
    LoraOption,
    ModalityOption,
    ModelArgument,
    QuantOption,
    console,
    parse_adapters,
)
from polyphi.cli.printable import PrintableFormatter, print_message
from polyphi.runtime.installation import pip_install
from polyphi.serve.admission.settings import ACCESS, LOAD, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from polyphi.serve.page.loading import Progress


def serve(
    model: ModelArgument,
    /,
    *,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    lora: LoraOption = (),
    modality: ModalityOption = (),
    device: DeviceOption = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
    reasoning: Annotated[
        Literal["auto", "on", "off"],
        Parameter(
            help="Separate `<think>...</think>` from the content of answers; auto: if the checkpoint's chat template "
            "mentions it, or the model's name contains 'reasoning'."
        ),
    ] = "auto",
    insecure: Annotated[
        bool, Parameter(help="Let other machines use the server without an API key.", group=ACCESS)
    ] = False,
    max_num_seqs: Annotated[
        int,
        Parameter(
            help="Maximum batch size (sequences).",
            validator=Number(gte=1, lte=1024),
            group=LOAD,
        ),
    ] = 32,
    cache_gb: Annotated[
        float | None,
        Parameter(
            help="Memory of the KV cache in GB; default: at most half of the free memory.",
            group=LOAD,
        ),
    ] = None,
) -> None:
    """Serve a model with an OpenAI-compatible API and a chat page.

    For example:

        polyphi serve nano
        polyphi serve microsoft/Phi-4-multimodal-instruct --quant int8
        polyphi serve nano --host 0.0.0.0 --api-key SECRET
    """
    from polyphi.hub.location import check_exists
    from polyphi.serve import run

    adapters = parse_adapters(lora)
    for name, folder in adapters.items():
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"--lora {name}={folder}: expected a folder")
    if settings.containers and find_spec("av") is None:
        raise ValueError(f"--containers needs PyAV: {pip_install('video')}")
    if settings.local is not None and not settings.local.is_dir():
        raise ValueError(f"--media-root {settings.local}: expected a folder")
    if settings.adapter_folder is not None and not settings.adapter_folder.is_dir():
        raise ValueError(f"--adapter-folder {settings.adapter_folder}: expected a folder")
    settings = replace(
        settings,
        name=settings.name or Path(model).expanduser().resolve().name,
        adapters=tuple(adapters),
    )
    run.check_exposed(settings, insecure)
    check_exists(model)
    listening = run.bind(settings)
    if not settings.port:
        settings = replace(settings, port=listening.getsockname()[1])
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for client in ("httpx", "httpx2"):  # a line for each request to the Hub
        logging.getLogger(client).setLevel(logging.WARNING)
    url = run.address(settings)

    def load(progress: "Progress") -> "FastAPI":
        # Imported here: torch takes seconds, and the port responds meanwhile.
        import polyphi
        from polyphi.serve.app import create_app

        check_model(model, quant, modalities=modality, adapters=adapters)
        phi = polyphi.load(
            model,
            device=device,
            quant=quant,
            max_num_seqs=max_num_seqs,
            cache_gb=cache_gb,
            kv=kv,
            adapters=adapters,
            modalities=modality,
            progress=progress.update,
        )
        print_message(str(phi.memory))
        reasons = phi.reasoning if reasoning == "auto" else reasoning == "on"
        return create_app(phi.engine, replace(settings, reasoning=reasons))

    def ready() -> None:
        console.print(f"{settings.name} at {url} (page), {url}/v1 (clients)", highlight=False)

    print_message(f"loading {settings.name}; {url}/ready returns the progress")
    run.serve(load, settings, listening, ready)
