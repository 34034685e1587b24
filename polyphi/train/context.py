"""What the program that trains a stage adds to the options of a user."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich

from polyphi.data.generated import GeneratedSamples
from polyphi.devices.precision import Choice
from polyphi.model.multimodal import PhiModel
from polyphi.train.evaluation import EvalOptions
from polyphi.types.batch import Batch

Print = Callable[[Any], None]
"""Prints a line of text or a rich table."""


@dataclass(frozen=True)
class RunContext:
    """Settings that the program which trains a stage adds to a user's options.

    `precision` is a choice that it made and reported itself. `generated` maps corpora to generators of new samples
    (data/generated.py), which replace their shards. `origins` names for each tensor the stage that its start weights
    come from. `evaluation`: rows of the split `eval` of some corpora are evaluated (None: none). `title` is the run's
    name in trackers, by default the stage's. `watch(model)` is evaluated every `watch_every` steps. `flops(pack)`
    counts the FLOPs of a pack and `peak_flops` is a process's peak per second: records then hold the FLOPs and the
    utilisation. A checkpoint is written every `checkpoint_seconds` seconds. `exported` is the folder of the model that
    a user's run is exported to: such a run may get more steps later, so its last checkpoint stays, and the model is
    kept beside it until these are done. `rows_reach_trainable`: the data are known to have rows for all that is
    trained, if not in the first step. `report` prints messages of the first process."""

    precision: Choice | None = None
    generated: Mapping[str, GeneratedSamples] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    evaluation: EvalOptions | None = None
    title: str | None = None
    watch: Callable[[PhiModel], Mapping[str, float]] | None = None
    flops: Callable[[Batch], float] | None = None
    peak_flops: float | None = None
    checkpoint_seconds: float = 60.0
    exported: Path | None = None
    rows_reach_trainable: bool = False
    report: Print = rich.print
