"""`polyphi serve`: the HTTP server and its chat page."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polyphi.cli.options import KvOption, ModelArgument, QuantOption, console
from polyphi.cli.printable import PrintableFormatter, print_message
from polyphi.runtime.installation import pip_install
from polyphi.serve.settings import MIB, Settings, check_key

ACCESS, LOAD = "Access and logs", "Load and memory"

if TYPE_CHECKING:
    from fastapi import FastAPI

    from polyphi.serve.loading import Progress


def serve(
    model: ModelArgument,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; 0.0.0.0 for all addresses of this machine.",
            envvar="POLYPHI_HOST",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, envvar="POLYPHI_PORT")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; default: its folder's name.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="A further name of the model; repeatable.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER", help="An adapter as PEFT writes it, under a name; repeatable."
        ),
    ] = None,
    adapter_folder: Annotated[
        Path | None,
        typer.Option(
            help="Allow clients to load adapters from below this folder, and to unload them.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        # Typer would split the variable at blanks.
        typer.Option(
            help="An API key that requests need; repeatable. Default: the lines of POLYPHI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quant: QuantOption = None,
    kv: KvOption = None,
    reasoning: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            help="Separate <think>...</think> from answers; auto: if the checkpoint's chat template mentions it, or "
            "its name contains 'reasoning'."
        ),
    ] = "auto",
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Allow other machines without a key.", rich_help_panel=ACCESS
        ),
    ] = False,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="API keys share cached prefixes and encoder outputs; default: each key has its own.",
            rich_help_panel=ACCESS,
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A host name of this server; repeatable.", rich_help_panel=ACCESS),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Allowed origin of web pages, such as https://example.org; repeatable.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    allow_remote: Annotated[
        list[str] | None,
        typer.Option(
            help='A host that media may be fetched from, such as "*.example.org"; default: none.',
            rich_help_panel=ACCESS,
        ),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder for file:// media.", rich_help_panel=ACCESS)
    ] = None,
    containers: Annotated[
        bool | None,
        typer.Option(
            help="Accept videos and M4A, MP4, WebM, AAC and AMR audio; default: where their decoder can be isolated.",
            show_default=False,
            rich_help_panel=ACCESS,
        ),
    ] = None,
    isolate_decoding: Annotated[
        bool | None,
        typer.Option(
            help="Decode images and all audio in separate processes; default: if other machines can reach the server.",
            show_default=False,
            rich_help_panel=ACCESS,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log prompts and answers.", rich_help_panel=ACCESS)
    ] = False,
    vllm_metrics: Annotated[
        bool,
        typer.Option(
            "--vllm-metrics", help="Export metrics under vLLM's names too.", rich_help_panel=ACCESS
        ),
    ] = False,
    max_num_seqs: Annotated[
        int,
        typer.Option(help="Maximum batch size (sequences).", min=1, max=1024, rich_help_panel=LOAD),
    ] = 32,
    max_waiting: Annotated[
        int,
        typer.Option(
            help="Maximum length of the queue; above it the server returns 429.",
            min=0,
            rich_help_panel=LOAD,
        ),
    ] = 64,
    prompts_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory for the prompts of all requests, media included; default: 1 GiB.",
            min=0,
            rich_help_panel=LOAD,
        ),
    ] = None,
    store_mb: Annotated[
        int,
        typer.Option(
            help="Memory for stored responses (/v1/responses) in MiB; 0 stores none.",
            min=0,
            rich_help_panel=LOAD,
        ),
    ] = 256,
    drain_seconds: Annotated[
        int,
        typer.Option(
            help="Time for running requests to finish after SIGTERM; the process ends at most 3 s later.",
            min=0,
            max=86400,
            rich_help_panel=LOAD,
        ),
    ] = 5,
    cache_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory of the KV cache; default: at most half of the free memory.",
            rich_help_panel=LOAD,
        ),
    ] = None,
) -> None:
    """Serve a model with an OpenAI-compatible API and a chat page.

    \b
    Examples:
      polyphi serve runs/nano
      polyphi serve microsoft/Phi-4-multimodal-instruct --quant int8
      polyphi serve runs/nano --host 0.0.0.0 --api-key SECRET
    """
    from polyphi.serve import run

    adapters = parse_adapters(lora or ())
    if containers and find_spec("av") is None:
        raise ValueError(f"--containers needs PyAV: {pip_install('video')}")
    if media_root is not None and not media_root.is_dir():
        raise ValueError(f"--media-root {media_root}: expected a folder")
    if adapter_folder is not None and not adapter_folder.is_dir():
        raise ValueError(f"--adapter-folder {adapter_folder}: expected a folder")
    settings = Settings(
        name or Path(model).expanduser().resolve().name,
        aliases=tuple(alias or ()),
        host=host,
        port=port,
        keys=api_keys(api_key or (), os.environ.get("POLYPHI_API_KEY", "")),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        remote=tuple(allow_remote or ()),
        local=media_root,
        adapter_folder=adapter_folder,
        adapters=tuple(adapters),
        containers=containers,
        isolate_decoding=isolate_decoding,
        share_prefixes=share_prefixes,
        vllm_names=vllm_metrics,
        log_prompts=log_prompts,
        max_waiting=max_waiting,
        max_stored_bytes=store_mb * MIB,
        drain_seconds=drain_seconds,
    )
    if prompts_gb is not None:
        settings = replace(settings, max_prepared_bytes=round(prompts_gb * 1e9))
    run.check_exposed(settings, insecure)
    listening = run.bind(settings)
    if not port:
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

        phi = polyphi.load(
            model,
            device=device,
            quant=quant,
            max_num_seqs=max_num_seqs,
            cache_gb=cache_gb,
            kv=kv,
            adapters=adapters,
            progress=progress.update,
        )
        print_message(str(phi.memory))
        reasons = phi.reasoning if reasoning == "auto" else reasoning == "on"
        return create_app(phi.engine, replace(settings, reasoning=reasons))

    def ready() -> None:
        console.print(f"{settings.name} at {url} (page), {url}/v1 (clients)", highlight=False)

    print_message(f"loading {settings.name}; {url}/ready returns the progress")
    run.serve(load, settings, listening, ready)


def api_keys(arguments: Sequence[str], environment: str) -> tuple[str, ...]:
    """The API keys of `--api-key`, or else the lines of `POLYPHI_API_KEY`. Raises ValueError for an empty one and one
    with a blank, which may be several."""
    keys = tuple(arguments) or tuple(line for line in environment.splitlines() if line)
    for key in keys:
        check_key(key)
    return keys


def parse_adapters(arguments: Sequence[str]) -> dict[str, str]:
    """The folders of adapters by name, of arguments like `medical=runs/medical`."""
    pairs = [argument.partition("=") for argument in arguments]
    for (name, sign, folder), argument in zip(pairs, arguments, strict=True):
        if not (name and sign and folder):
            raise ValueError(
                f"--lora is NAME=FOLDER, such as medical=my-adapter; found {argument!r}"
            )
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"--lora has the same name twice: {', '.join(arguments)}")
    return {name: folder for name, _, folder in pairs}
