"""Stages of the recipe by name, for `polyphi train` (entry points of the group `polyphi.stages`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.cli.options import NANO, console
from polyphi.train.options import TrainOptions


def train(
    name: str,
    out: Path | None,
    *,
    recipe: str,
    options: TrainOptions,
    budget: Mapping[str, Any],
    modalities: Sequence[str] = (),
) -> None:
    """Train a stage in the run `out`, after its parents and corpora. `recipe`: a size, or a recipe file. `budget`
    replaces values of the stage's budget, but not of its parents'."""
    from polyphi_recipe.graph import Run

    run = Run(recipe, out or NANO, options=options, modalities=modalities, console=console)
    run.train(name, options.base, budget)
