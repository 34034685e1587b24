"""`polyphi reproduce`: the whole recipe."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import console
from polyphi.train.options import PrecisionOption, SeedOption, TrainOptions


def reproduce(
    size: Annotated[str, Parameter(help="micro, nano, lab or full.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the run; the same folder resumes.")],
    seed: SeedOption = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Run the whole recipe: data, tokenizer, sixteen stages, evaluation and a report page.

    For example:

        polyphi reproduce nano --out runs/nano
    """
    from polyphi_recipe.graph import Run

    options = TrainOptions(seed=seed, precision=precision)
    run = Run(size, out, options=options, console=console)
    page = run.reproduce()
    summary = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["summary"]
    console.print(
        f"\ncore    {summary['core_beats']} of {summary['core']} tasks beat their baselines\n"
        f"report  {page}\ntalk    polyphi chat {out}\npage    polyphi serve {out}   then open its URL"
    )
