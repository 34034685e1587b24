"""`polyphi eval heldout`: evaluate the models of a run on its held-out rows."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyphi.cli.options import ModalityOption, QuantOption, console
from polyphi.train.options import TrainOptions


def heldout(
    run: Annotated[Path, Parameter(help="Folder of a run of `polyphi reproduce`.")],
    /,
    *tasks: Annotated[str, Parameter(help="Held-out tasks; default: all.")],
    quant: QuantOption = None,
    modality: ModalityOption = (),
) -> None:
    """Evaluate the models of a run on its held-out rows; `polyphi eval RUN` means the same.

    For example:

        polyphi eval heldout runs/nano
        polyphi eval heldout runs/nano arithmetic --quant int8
    """
    from polyphi_recipe.graph import evaluation, from_file
    from polyphi_recipe.graph.graph import Run
    from polyphi_recipe.recipe.recipe import with_modalities

    if not (run / "run.json").is_file():
        raise ValueError(
            f"{run} is no run of `polyphi reproduce`; for other models use `polyphi eval {run} --suite mini`"
        )
    seed = json.loads((run / "run.json").read_text())["seed"]
    recipe = with_modalities(from_file.of_run(run), modality)
    of_run = Run(recipe, run, options=TrainOptions(seed=seed), console=console)
    evaluation.evaluate(of_run.recipe, of_run.folder, of_run.models, tasks, quant)
