"""`polyphi scaling`: the learning rate scaling law of text 1."""

from typing import Annotated

import typer

from polyphi.cli.options import NANO, PrecisionOption, RunOption, SizeOption, console


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
      polyphi scaling --out runs/nano --seeds 3
    """
    from polyphi.recipe.graph import Run

    Run(size, out, seed=seed, precision=precision, console=console).scaling(seeds)
