"""`polyphi ablate`: train a stage with other mixes."""

from typing import Annotated

import typer

from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console


def ablate(
    stage: Annotated[str, typer.Argument(help="A stage, such as text_3_post.")],
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Changed weights, such as tools=0 or code=2,math=1; repeatable."),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Add the mixes without one corpus each.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Training runs of each mix.", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="Steps; default: the stage's.", min=1)] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A held-out task to score as well; repeatable.")
    ] = None,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Train a stage with other mixes and compare the held-out loss of every corpus. The results are written to the
    run's `ablation` folder.

    \b
    Examples:
      polyphi ablate text_3_post --mix code=2,math=1 --seeds 2
      polyphi ablate text_3_post --leave-one-out --task arithmetic
    """
    from polyphi.recipe.experiments import ablation
    from polyphi.recipe.graph import Run
    from polyphi.stages import sizes

    arms = ablation.mixes(sizes.load(size).stage(stage), mix or (), leave_one_out)
    run = Run(size, out, seed=seed, precision=precision, console=console)
    results = ablation.ablate(run, stage, arms, seeds=seeds, steps=steps, tasks=task or ())
    console.print(ablation.markdown(results), highlight=False, soft_wrap=True)
