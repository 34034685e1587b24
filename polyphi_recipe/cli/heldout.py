"""`polyphi eval heldout`: evaluate the models of a run on its held-out rows."""

from pathlib import Path
from typing import Annotated

import typer

from polyphi.cli.options import QuantOption, SizeOption, console


def heldout(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `polyphi reproduce`.")],
    tasks: Annotated[list[str] | None, typer.Argument(help="Held-out tasks; default: all.")] = None,
    quant: QuantOption = None,
    size: SizeOption = "nano",
    seed: int = 0,
) -> None:
    """Evaluate the models of a run on its held-out rows; `polyphi eval RUN` means the same.

    \b
    Examples:
      polyphi eval heldout runs/nano
      polyphi eval heldout runs/nano arithmetic --quant int8
    """
    from polyphi.recipe.graph import Run

    if not (run / "stages").is_dir():
        raise ValueError(
            f"{run} is no run of `polyphi reproduce`; for other models use `polyphi eval {run} --suite mini`"
        )
    Run(size, run, seed=seed, console=console).evaluate(*tasks or (), quant=quant)
