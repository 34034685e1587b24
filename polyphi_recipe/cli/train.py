"""Stages of the recipe by name, for `polyphi train` (entry points of the group `polyphi.stages`)."""

from pathlib import Path

from polyphi.cli.options import NANO, console
from polyphi.train.options import TrainOptions


def train(name: str, out: Path | None, *, size: str, options: TrainOptions) -> None:
    """Train a stage in the run `out`, after its parents and corpora."""
    from polyphi_recipe.graph import Run

    run = Run(
        size,
        out or NANO,
        seed=options.seed,
        precision=options.precision,
        console=console,
        watch_steps=options.watch_every,
        track=options.track,
        machine=options.machine,
    )
    run.train(name, options.base)
