"""Stages of the recipe by name, for `polyphi train` (the entry point of the group `polyphi.stages`)."""

from collections.abc import Sequence
from pathlib import Path

from polyphi.cli.options import console, folder_of_run
from polyphi.train.options import TrainOptions


def train(
    names: Sequence[str],
    out: Path | None,
    *,
    recipe: str,
    options: TrainOptions,
    batch_tokens: int | None = None,
    modalities: Sequence[str] = (),
) -> None:
    """Train stages in the run `out`, each after its parents and corpora. `recipe`: a size, or a recipe file.
    `batch_tokens` replaces the stages' tokens of a step, but not their parents'. Raises ValueError with the nearest
    name for an unknown stage."""
    from polyphi_recipe.graph import find

    chosen = find.of(recipe, modalities)
    for name in names:
        chosen.lineage.stage(name)

    from polyphi_recipe.graph.graph import Run  # with more packages than an unknown name needs

    run = Run(chosen, folder_of_run(recipe, out), options=options, console=console)
    for name in names:
        run.train(name, options.base, batch_tokens)
