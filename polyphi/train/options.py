"""Options of a training run that a stage file doesn't hold, as a user sets them on a command line or in Python.

    TrainOptions      the run: seed, precision, base, what is recorded of it
      guard           StepGuard: which steps are rejected
      machine         MachineOptions: packs, processes, memory, checkpoints
    FinetuneOptions   a user's stage: its rows, its length, its evaluations

The text under a field is its help. This module doesn't import torch, so that a command line is made from these classes
before torch is imported. What only a program can give to a run is in `RunContext` (context.py).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter, Token
from cyclopts.types import PositiveFloat, PositiveInt

MACHINE_GROUP = Group("Machine (no effect on the result)", sort_key=1)
FINETUNE_GROUP = Group("Fine-tuning (with `train`: of a stage file)", sort_key=2)

SeedOption = Annotated[
    int, Parameter(help="Seed of the draws of samples, the initial weights and dropout.")
]
PrecisionOption = Annotated[
    Literal["auto", "bf16", "fp32"],
    Parameter(
        help="Precision of training; weights stay fp32. auto: as the run in the folder, else by device and model.",
    ),
]
Base = Literal["int8", "int4"]
"""A scheme for the frozen weights of a model in training."""
Activations = Literal["keep", "recompute", "offload"]
MIN_NORMS = 10
"""Fewest earlier gradient norms that a spike is measured against."""


def parse_columns(_: type, tokens: Sequence[Token]) -> dict[str, str]:
    """The mapping in a text like `answer=text,audio=clip`."""
    return _parse_pairs(tokens[0].value, "OURS=YOURS,..., such as answer=text")


def parse_sizes(_: type, tokens: Sequence[Token]) -> dict[str, int]:
    """The mapping in a text like `image=16,audio=3000`."""
    expected = "MODALITY=SIZE,..., such as image=16"
    pairs = _parse_pairs(tokens[0].value, expected)
    if wrong := [size for size in pairs.values() if not size.isdecimal()]:
        raise ValueError(f"expected {expected}; found {wrong[0]!r}")
    return {name: int(size) for name, size in pairs.items()}


def _parse_pairs(text: str, expected: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise ValueError(f"expected {expected}; found {wrong[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


@Parameter(name="*")
@dataclass(frozen=True)
class StepGuard:
    """The rule for rejecting steps: those whose gradient norm isn't finite, and loss spikes."""

    spike: float | None = None
    """Reject steps with a gradient norm this many times the median, such as 10."""
    on_spike: Literal["skip", "roll-back"] = "skip"
    """Skip the rejected step, or roll back to the last checkpoint."""

    def rejects(self, norm: float, norms: Sequence[float]) -> bool:
        """Whether a step with the gradient norm `norm` is rejected, given the `norms` of the steps before it."""
        if not math.isfinite(norm):
            return True
        if self.spike is None or len(norms) < MIN_NORMS:
            return False
        return norm > self.spike * statistics.median(norms)


@Parameter(name="*", group=MACHINE_GROUP)
@dataclass(frozen=True)
class MachineOptions:
    """Options of a run's use of the machine. None of them changes what is trained."""

    micro_tokens: int = 8192
    """Maximum tokens of a pack (micro-batch)."""
    micro_inputs: Annotated[
        Mapping[str, int],
        Parameter(
            converter=parse_sizes, n_tokens=1, accepts_keys=False, metavar="MODALITY=SIZE,..."
        ),
    ] = field(default_factory=dict)
    """Maximum number of image crops (image=N) and of 10 ms audio frames (audio=N) in a pack."""
    workers: int | None = None
    """Number of processes that read and decode data; default: 0 on a CPU, several with a GPU."""
    fsdp: int = 1
    """Number of torchrun's processes that share the decoder's layers (FSDP)."""
    context_parallel: int = 1
    """Number of processes that share each pack (context parallelism)."""
    activations: Activations = "keep"
    """Keep activations, recompute them (less memory, more time), or offload them to CPU memory."""
    features: Path | None = None
    """Cache outputs of frozen encoders in this folder."""
    background: bool = False
    """Write checkpoints in the background."""
    deterministic: bool = False
    """Use only deterministic kernels."""


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """Options of a run. Only `seed`, `precision`, `base` and `guard` change its numbers."""

    seed: SeedOption = 0
    precision: PrecisionOption = "auto"
    base: Base | None = None
    """Quantize the frozen weights (QLoRA), which saves memory."""
    guard: StepGuard = field(default_factory=StepGuard)
    watch_every: Annotated[int, Parameter(group=MACHINE_GROUP)] = 0
    """Steps between evaluations of the stage's held-out tasks; 0: none."""
    track: Annotated[Sequence[str], Parameter(group=MACHINE_GROUP)] = ()
    """Log metrics to tensorboard, trackio or wandb; repeatable."""
    machine: MachineOptions = field(default_factory=MachineOptions)


@Parameter(name="*", group=FINETUNE_GROUP)
@dataclass(frozen=True)
class FinetuneOptions:
    """Options of a stage that is trained on a user's rows (polyphi/finetuning)."""

    columns: Annotated[
        Mapping[str, str],
        Parameter(
            converter=parse_columns, n_tokens=1, accepts_keys=False, metavar="OURS=YOURS,..."
        ),
    ] = field(default_factory=dict)
    """Column names of the data, such as answer=text,audio=clip; CORPUS.answer=... for several."""
    skip_bad: bool = False
    """Skip invalid rows."""
    allowed_media_path: Annotated[Sequence[str], Parameter(metavar="PATH")] = ()
    """Folder or address whose files rows may name, beside those in the folder of the rows; repeatable."""
    media_dir: str | None = None
    """Folder that paths in rows are relative to; default: that of their file."""
    encoding: str = ""
    """Encoding of texts that aren't UTF-8, such as cp1252."""
    eval_data: Sequence[str] = ()
    """Rows to evaluate the loss on during training, in the form of --data."""
    eval_every: PositiveInt | None = None
    """Steps between these evaluations; default: a tenth of the run's steps."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a lower loss; the best step is exported."""
    steps: PositiveInt | None = None
    """Training steps; default: the stage's, of `finetune` those of 3 epochs, but at most of 8 hours. A larger number
    continues a finished run."""
    epochs: PositiveFloat | None = None
    """Number of times that each row is used, instead of --steps."""
    batch_tokens: PositiveInt | None = None
    """Tokens of a step; default: the stage's, of `finetune` fewer for few rows or little time."""
    lr_factor: float = 1.0
    """Factor for the stage's learning rates."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"expected --steps or --epochs, found --steps {self.steps} and --epochs {self.epochs:g}"
            )
        if not self.eval_data and (self.eval_every is not None or self.patience is not None):
            raise ValueError(
                "--eval-every and --patience need evaluation rows; expected --eval-data FILE, found none"
            )
