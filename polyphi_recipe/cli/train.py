"""Stages of the recipe by name, for `polyphi train` (entry points of the group `polyphi.stages`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyphi.cli.options import Precision, console


def train(
    name: str,
    out: Path | None,
    *,
    size: str,
    seed: int,
    precision: Precision,
    base: str | None,
    watch_every: int,
    track: Sequence[str],
    machine: Any,
) -> None:
    """Train a stage in the run `out`, after its parents and corpora. `machine`: the run's `MachineOptions`."""
    from polyphi_recipe.graph import Run

    run = Run(
        size,
        out or Path("runs/nano"),
        seed=seed,
        precision=precision,
        console=console,
        watch_steps=watch_every,
        track=track,
        machine=machine,
    )
    run.train(name, base)
