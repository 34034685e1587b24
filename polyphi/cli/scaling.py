"""`polyphi scaling`: the learning rate law of text 1."""

from typing import Annotated

import typer

from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console


def scaling(
    size: SizeOption = "nano",
    out: RunOption = NANO,
    seeds: Annotated[int, typer.Option(help="Runs of every length and rate.", min=1)] = 2,
    seed: int = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Measure the law of text 1's peak rate: best rates over runs of several lengths, B, a picture. Results stand in
    the run's `scaling`."""
    from polyphi.recipe.graph import Run

    Run(size, out, seed=seed, precision=precision, console=console).scaling(seeds)
