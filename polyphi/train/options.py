"""Options of a training run that a stage file doesn't hold, as a user sets them on a command line or in Python.

    TrainOptions      the run: seed, precision, base, what is recorded of it
      machine         MachineOptions: packs, processes, memory, checkpoints
        guard         StepGuard: which steps are rejected

The text under a field is its help. This module imports the standard library alone, so that a command line is made from
these classes before torch is imported. What only a program can give to a run is in `trainer.Caller`.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Base = Literal["int8", "int4"]
"""A scheme for the frozen weights of a model in training."""
MIN_NORMS = 10
"""Fewest earlier gradient norms that a spike is measured against."""


@dataclass(frozen=True)
class StepGuard:
    """Which steps are rejected: those whose gradient norm isn't finite, and loss spikes."""

    spike: float | None = None
    """Reject steps with a gradient norm this many times the median, such as 10."""
    on_spike: Literal["skip", "roll-back"] = "skip"
    """skip the rejected step, or roll-back to the last checkpoint."""

    def rejects(self, norm: float, norms: Sequence[float]) -> bool:
        """Whether a step with the gradient norm `norm` is rejected, given the `norms` of the steps before it."""
        if not math.isfinite(norm):
            return True
        if self.spike is None or len(norms) < MIN_NORMS:
            return False
        return norm > self.spike * statistics.median(norms)


@dataclass(frozen=True)
class MachineOptions:
    """How a run uses the machine. No option here changes what is trained, but `guard` rejects steps."""

    micro_tokens: int = 8192
    """Maximum tokens of a pack (micro-batch)."""
    micro_crops: int | None = None
    """Maximum crops of a pack; default: no separate limit."""
    micro_frames: int | None = None
    """Maximum audio frames (10 ms) of a pack; default: no separate limit."""
    workers: int | None = None
    """Processes that read and decode data; default: 0 on a CPU, several with a GPU."""
    fsdp: int = 1
    """Shards of the decoder's layers, over torchrun's processes."""
    context_parallel: int = 1
    """Processes to split each pack of long text over (context parallelism)."""
    activations: Literal["keep", "recompute", "offload"] = "keep"
    """keep, recompute (less memory, more time) or offload."""
    features: Path | None = None
    """Cache outputs of frozen encoders in this folder."""
    background: bool = False
    """Write checkpoints in the background."""
    deterministic: bool = False
    """Use only deterministic kernels."""
    guard: StepGuard = field(default_factory=StepGuard)


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run. Only `seed`, `precision` and `base` change its numbers."""

    seed: int = 0
    """Seed of the draws of samples, the initial weights and dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of training; weights stay fp32. auto: as the run in the folder, or else the faster one here."""
    base: Base | None = None
    """Quantize the frozen weights (QLoRA): less memory."""
    watch_every: int = 0
    """Steps between evaluations of the stage's held-out tasks; 0: none."""
    track: Sequence[str] = ()
    """tensorboard, trackio or wandb; repeatable."""
    machine: MachineOptions = field(default_factory=MachineOptions)
