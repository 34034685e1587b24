"""Stages of the recipe by name, for `polyphi train` (entry points of the group `polyphi.stages`)."""

from collections.abc import Sequence
from pathlib import Path

from polyphi.cli.options import console, folder_of_run
from polyphi.train.options import TrainOptions


def train(
    name: str,
    out: Path | None,
    *,
    recipe: str,
    options: TrainOptions,
    batch_tokens: int | None = None,
    modalities: Sequence[str] = (),
) -> None:
    """Train a stage in the run `out`, after its parents and corpora. `recipe`: a size, or a recipe file. `batch_tokens`
    replaces the stage's tokens of a step, but not its parents'."""
    from polyphi_recipe.graph.graph import Run

    run = Run(
        recipe, folder_of_run(recipe, out), options=options, modalities=modalities, console=console
    )
    run.train(name, options.base, batch_tokens)
