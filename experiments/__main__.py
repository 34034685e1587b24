"""Experiments on runs of the recipe, commands of a checkout: `python -m experiments COMMAND --help`."""

from typing import Annotated

import typer

from polyphi.cli import main
from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console

app = typer.Typer(name="experiments", help=__doc__, no_args_is_help=True)


@app.command()
def claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLAIM...]", help="Claims, such as C4; default: all."),
    ] = None,
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seeds: Annotated[int, typer.Option(help="Training runs of each arm.", min=1)] = 2,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Re-test the report's claims on a finished run. Several processes on one run share the work.

    \b
    Examples:
      python -m experiments claims --out runs/nano
      python -m experiments claims C4 C9 --seeds 3
    """
    from experiments.claims import runner
    from polyphi_recipe.graph import Run

    run = Run(size, out, seed=seed, precision=precision, console=console)
    if names:
        runner.run_claims(run, names, seeds)
    else:
        runner.run_all_claims(run, seeds)


@app.command()
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
      python -m experiments ablate text_3_post --mix code=2,math=1 --seeds 2
      python -m experiments ablate text_3_post --leave-one-out --task arithmetic
    """
    from experiments import ablation
    from polyphi.planning import sizes
    from polyphi_recipe import stages
    from polyphi_recipe.graph import Run

    arms = ablation.mixes(stages.at_size(stage, sizes.load(size)), mix or (), leave_one_out)
    run = Run(size, out, seed=seed, precision=precision, console=console)
    results = ablation.ablate(run, stage, arms, seeds=seeds, steps=steps, tasks=task or ())
    console.print(ablation.markdown(results), highlight=False, soft_wrap=True)


@app.command()
def scaling(
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seeds: Annotated[
        int, typer.Option(help="Training runs for each length and learning rate.", min=1)
    ] = 2,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Measure the scaling law of text 1's peak learning rate: best rates for several run lengths, the exponent B and a
    plot. The results are written to the run's `scaling` folder.

    \b
    Examples:
      python -m experiments scaling --out runs/nano --seeds 3
    """
    from experiments.scaling import measure
    from polyphi_recipe.graph import Run

    measure(Run(size, out, seed=seed, precision=precision, console=console), seeds)


if __name__ == "__main__":
    main(application=app)
