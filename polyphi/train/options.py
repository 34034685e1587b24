"""Options of a training run that a stage file doesn't hold: the run's own, and those of the machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich

from polyphi.batch import Batch
from polyphi.data.fresh import Fresh
from polyphi.data.packing import Capacity
from polyphi.model.multimodal import PhiModel
from polyphi.runtime.precision import Choice, Requested
from polyphi.runtime.progress import Tracker
from polyphi.train.evaluation import EvalOptions
from polyphi.train.guard import StepGuard
from polyphi.train.memory import Activations

Report = Callable[[Any], None]
"""Prints a line of text or a rich table."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run that don't depend on the machine, and where its records are written.

    `precision` "auto" keeps that of the run in the folder, or measures this machine (runtime/precision.py); a `Choice`
    was already reported by the caller. `base` is the scheme ("int8" or "int4") to which the caller has quantized the
    model's frozen weights (`quantize_frozen`). `fresh` maps corpora to generators of new samples (data/fresh.py),
    which replace their shards. `origins` names for each tensor the stage that its start weights come from.
    `evaluation` are the options of evaluations on the split `eval` of some corpora (None: no evaluations).
    `watch(model)` is evaluated every `watch_steps` steps (0: never) and `trackers` get every record. `flops(pack)`
    counts the FLOPs of a pack and `peak_flops` is a process's peak per second: records then hold the FLOPs and the
    utilisation.
    `report` prints messages of the first process.
    """

    seed: int = 0
    precision: Requested | Choice = "auto"
    base: str | None = None
    fresh: Mapping[str, Fresh] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    evaluation: EvalOptions | None = None
    watch: Callable[[PhiModel], Mapping[str, float]] | None = None
    watch_steps: int = 0
    trackers: Sequence[Tracker] = ()
    flops: Callable[[Batch], float] | None = None
    peak_flops: float | None = None
    report: Report = rich.print


@dataclass(frozen=True)
class MachineOptions:
    """How a run uses the machine: memory, processes and files. No option here changes what is trained.

    `micro_tokens`, `micro_crops` and `micro_frames` (of 10 ms) bound a pack. `workers` is the number of processes that
    prepare rows (None: none on a CPU, some with a GPU). `fsdp` processes share the decoder's layers and
    `context_parallel` processes share each pack of a language model. `activations` are kept, recomputed or offloaded.
    `features` is a folder in which outputs of frozen encoders are cached between epochs. `deterministic` restricts
    torch to deterministic kernels. `guard` handles non-finite losses and loss spikes. A checkpoint is written every
    `checkpoint_seconds` seconds, by a background thread where `background` is set.
    """

    micro_tokens: int = 8192
    micro_crops: int | None = None
    micro_frames: int | None = None
    workers: int | None = None
    fsdp: int = 1
    context_parallel: int = 1
    activations: Activations = "keep"
    features: Path | None = None
    deterministic: bool = False
    guard: StepGuard = field(default_factory=StepGuard)
    checkpoint_seconds: float = 60.0
    background: bool = False

    @property
    def pack_capacity(self) -> Capacity:
        """The bounds of a pack. Raises ValueError where one is below 1."""
        return Capacity(self.micro_tokens, self.micro_crops, self.micro_frames)
