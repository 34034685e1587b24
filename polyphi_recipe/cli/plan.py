"""`polyphi plan`: memory, FLOPs, time and cost of stages."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from polyphi.cli.options import SizeOption, console


def plan(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE...]", help="Stages; default: all.")
    ] = None,
    size: SizeOption = "full",
    devices: Annotated[
        str, typer.Option(help="Number and name: A100, H100, H200, B200, L4 or cpu.")
    ] = "64xH100",
    fsdp: Annotated[
        int, typer.Option(help="Devices that the decoder's layers are sharded over.")
    ] = 1,
    micro_tokens: Annotated[int, typer.Option(help="Tokens of a pack (micro-batch).")] = 8192,
    activations: Annotated[
        Literal["keep", "recompute"], typer.Option(help="keep or recompute.")
    ] = "keep",
    context_parallel: Annotated[
        int, typer.Option(help="Devices that a pack of text is split over (context parallelism).")
    ] = 1,
    base: Annotated[
        Literal["fp32", "bf16", "int8", "int4"],
        typer.Option(
            help="Frozen weights: fp32 (the recipe), bf16 (a published checkpoint), int8 or int4."
        ),
    ] = "fp32",
    utilisation: Annotated[
        float, typer.Option(help="Share of the devices' peak that training reaches.")
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of a device per hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run two steps on tensors without memory.")
    ] = False,
) -> None:
    """Show the cost of stages in advance: memory, FLOPs, communication, time, money.

    \b
    Examples:
      polyphi plan
      polyphi plan vision_3_generative --devices 8xH100 --activations recompute
      polyphi plan speech_2_post --devices 1xL4 --base int4 --micro-tokens 1024
      polyphi plan text_1_pretrain --size nano --devices 1xcpu --json
    """
    from polyphi.planning import cost, sizes
    from polyphi_recipe import plan as planning
    from polyphi_recipe import stages

    on = cost.Switches(fsdp, micro_tokens, activations, context_parallel, base)
    chosen, table = names or list(stages.ORDER), sizes.load(size)
    if dry_run:
        from polyphi.planning.dry_run import summary

        for name in chosen:
            text = summary(planning.stage_model(name, table), fsdp, context_parallel)
            console.print(text, highlight=False)
        return
    plans = [
        planning.plan(name, table, devices, on, utilisation=utilisation, price=price)
        for name in chosen
    ]
    if as_json:
        print(json.dumps([asdict(p) | {"cost": p.cost} for p in plans], indent=1))
        return
    for line in planning.page(plans):
        console.print(line, highlight=False, soft_wrap=isinstance(line, str))
