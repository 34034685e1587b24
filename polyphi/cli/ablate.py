"""`polyphi ablate`: a stage under other mixes."""

from typing import Annotated

import typer

from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console


def ablate(
    stage: Annotated[str, typer.Argument(help="Stage, such as text_3_post.")],
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Other weights, tools=0 or code=2,math=1; may be repeated."),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also the mix without each of its corpora.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Runs of every mix.", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="In place of the stage's own.", min=1)] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A held-out task to score as well; may be repeated.")
    ] = None,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Train a stage under other mixes and compare the held-out loss of every corpus. Results stand in the run's
    `ablation`."""
    from polyphi.recipe.experiments import ablation
    from polyphi.recipe.graph import Run
    from polyphi.stages import sizes

    arms = ablation.mixes(sizes.load(size).stage(stage), mix or (), leave_one_out)
    run = Run(size, out, seed=seed, precision=precision, console=console)
    found = ablation.ablate(run, stage, arms, seeds=seeds, steps=steps, tasks=task or ())
    console.print(ablation.markdown(found), highlight=False, soft_wrap=True)
