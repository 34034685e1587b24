"""`polyphi reproduce`: the whole recipe."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import ModalityOption, console
from polyphi.train.options import PrecisionOption, SeedOption, TrainOptions


def reproduce(
    recipe: Annotated[str, Parameter(help="micro, nano, lab or full, or a recipe file (.toml).")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the run; the same folder resumes.")],
    seed: SeedOption = 0,
    precision: PrecisionOption = "auto",
    modality: ModalityOption = (),
    finish: Annotated[
        bool,
        Parameter(
            help="Train no further stage: export and evaluate those that are finished, and write the page. Without it "
            "the same command resumes."
        ),
    ] = False,
) -> None:
    """Run the whole recipe: data, tokenizer, sixteen stages, evaluation and a report page.

    For example:

        polyphi reproduce nano --out runs/nano
        polyphi reproduce lab.toml --out runs/lab
        polyphi reproduce lab.toml --out runs/lab --finish
    """
    from polyphi_recipe.graph.graph import Run

    options = TrainOptions(seed=seed, precision=precision)
    run = Run(recipe, out, options=options, modalities=modality, console=console)
    page = run.finish() if finish else run.reproduce()
    summary = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["summary"]
    core = run.recipe.is_built_in
    beats, tasks = ("core_beats", "core") if core else ("beats", "tasks")
    console.print(
        f"\n{'core ' if core else 'tasks'}   {summary[beats]} of {summary[tasks]} tasks beat their baselines\n"
        f"report  {page}"
    )
    if (out / "model").exists():
        console.print(
            f"talk    polyphi chat {out}\npage    polyphi serve {out}   then open its URL"
        )
