"""`polyphi plan`: memory, FLOPs, time and cost of stages."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from polyphi.cli.options import ModalityOption, SizeOption, console
from polyphi.planning.assumptions import Hardware, OwnRows, Switches

if TYPE_CHECKING:
    from polyphi_recipe.graph.plan import Plan


def plan(
    *stages: Annotated[
        str,
        Parameter(
            help="A recipe file (.toml), which replaces the size, and stages; default: all. Or `finetune` and one "
            "of its kinds, or stage files (.py)."
        ),
    ],
    size: SizeOption = "full",
    hardware: Hardware = Hardware(),  # noqa: B008 - frozen
    modality: ModalityOption = (),
    switches: Switches = Switches(),  # noqa: B008 - frozen
    own: OwnRows = OwnRows(),  # noqa: B008 - frozen
    fit: Annotated[bool, Parameter(help="Plan each stage with a fast setting that fits.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON list.")] = False,
) -> None:
    """Show the cost of stages before they run: memory, FLOPs, communication, time, money.

    For example:

        polyphi plan
        polyphi plan --devices 512xA100 --fit
        polyphi plan lab.toml --devices 8xH100
        polyphi plan vision_3_generative --devices 8xH100 --activations recompute
        polyphi plan speech_2_post --devices 1xL4 --base int4 --micro-tokens 1024
        polyphi plan text_1_pretrain --size nano --devices 1xcpu --json
        polyphi plan finetune vision --devices 1xRTX4090 --fit
        polyphi plan finetune speech --model runs/nano/model --data calls.jsonl --devices 1xM4Max --memory 36
    """
    from polyphi_recipe.graph import find
    from polyphi_recipe.graph import plan as planning
    from polyphi_recipe.recipe.recipe import REAL_SIZES

    words = stages[1:] if stages[:1] == ("finetune",) else stages
    if words != stages or any(name.endswith(".py") for name in words):
        from polyphi_recipe.graph import finetune_plan

        if not words:
            raise ValueError(
                f"expected a kind after `finetune`: {', '.join(finetune_plan.TYPICAL)}"
            )
        report = partial(print, file=sys.stderr)
        plans = [
            finetune_plan.plan(w, own, hardware, switches, fit=fit, report=report) for w in words
        ]
        _print(plans, switches, as_json)
        return
    if unused := [f"--{name.replace('_', '-')}" for name, value in vars(own).items() if value]:
        raise ValueError(
            f"{', '.join(unused)}: a stage of the recipe has its own rows and length; expected `plan finetune "
            "KIND` or a .py file before these options"
        )
    files = [name for name in stages if name.endswith(".toml")]
    if len(files) > 1:
        raise ValueError(f"expected one recipe file, found {', '.join(files)}")
    recipe = find.of(files[0] if files else size, modality)
    chosen = tuple(name for name in stages if name not in files) or recipe.order
    plans = [planning.plan(name, recipe, hardware, switches, fit=fit) for name in chosen]
    real = recipe.file is not None or recipe.size.name in REAL_SIZES
    if real and not as_json and not any(name for name in stages if name not in files):
        console.print(planning.sources_table(recipe))
        for warning in planning.repeated(recipe):
            console.print(warning, highlight=False, soft_wrap=True)
    _print(plans, planning.as_trained(recipe, switches), as_json)


def _print(plans: Sequence["Plan"], on: Switches, as_json: bool) -> None:
    """Print plans with the options `on`."""
    from polyphi_recipe.graph.plan import page

    if as_json:
        print(json.dumps([asdict(p) | {"cost": p.cost} for p in plans], indent=1))
        return
    for line in page(plans, on):
        console.print(line, highlight=False, soft_wrap=isinstance(line, str))
