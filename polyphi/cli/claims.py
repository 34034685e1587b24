"""`polyphi claims`: re-test the report's claims on a finished run."""

from typing import Annotated

import typer

from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console


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
      polyphi claims --out runs/nano
      polyphi claims C4 C9 --seeds 3
    """
    from polyphi.recipe.experiments.claims import runner
    from polyphi.recipe.graph import Run

    run = Run(size, out, seed=seed, precision=precision, console=console)
    runner.run_claims(run, names or (), seeds)
