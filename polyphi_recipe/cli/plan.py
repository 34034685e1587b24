"""`polyphi plan`: memory, FLOPs, time and cost of stages."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import ModalityOption, SizeOption, console
from polyphi.planning.options import Switches


def plan(
    *stages: Annotated[
        str,
        Parameter(help="A recipe file (.toml), which replaces the size, and stages; default: all."),
    ],
    size: SizeOption = "full",
    devices: Annotated[
        str, Parameter(help="Number and name: A100, H100, H200, B200, L4 or cpu.")
    ] = "64xH100",
    modality: ModalityOption = (),
    switches: Switches = Switches(),  # noqa: B008 - frozen
    utilisation: Annotated[
        float, Parameter(help="Share of the devices' peak that training reaches.")
    ] = 0.4,
    fit: Annotated[bool, Parameter(help="Plan each stage with a fast setting that fits.")] = False,
    price: Annotated[float | None, Parameter(help="Price of a device per hour.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON list.")] = False,
    dry_run: Annotated[bool, Parameter(help="Run two steps on tensors without memory.")] = False,
) -> None:
    """Show the cost of stages in advance: memory, FLOPs, communication, time, money.

    For example:

        polyphi plan
        polyphi plan --devices 512xA100 --fit
        polyphi plan lab.toml --devices 8xH100
        polyphi plan vision_3_generative --devices 8xH100 --activations recompute
        polyphi plan speech_2_post --devices 1xL4 --base int4 --micro-tokens 1024
        polyphi plan text_1_pretrain --size nano --devices 1xcpu --json
    """
    from polyphi_recipe import find_recipe
    from polyphi_recipe import plan as planning
    from polyphi_recipe.recipe import REAL_SIZES

    files = [name for name in stages if name.endswith(".toml")]
    if len(files) > 1:
        raise ValueError(f"expected one recipe file, found {', '.join(files)}")
    recipe = find_recipe.of(files[0] if files else size, modality)
    chosen = tuple(name for name in stages if name not in files) or recipe.order
    if dry_run:
        from polyphi.planning.dry_run import summary

        for name in chosen:
            text = summary(
                planning.stage_model(name, recipe), switches.fsdp, switches.context_parallel
            )
            console.print(text, highlight=False)
        return
    plans = [
        planning.plan(
            name, recipe, devices, switches, utilisation=utilisation, price=price, fit=fit
        )
        for name in chosen
    ]
    if as_json:
        print(json.dumps([asdict(p) | {"cost": p.cost} for p in plans], indent=1))
        return
    real = recipe.file is not None or recipe.size.name in REAL_SIZES
    if real and not any(name for name in stages if name not in files):
        console.print(planning.sources_table(recipe))
    for line in planning.page(plans, planning.as_trained(recipe, switches)):
        console.print(line, highlight=False, soft_wrap=isinstance(line, str))
