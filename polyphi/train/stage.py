"""`Stage`: what is trained, on which data, from which weights. Options of the machine stay on the command line.

A stage file reads aloud::

    stage = Stage(
        name="speech_2_post",
        start={"*": "speech_1_pretrain"},
        trainable={"audio.projector.speech.*": 1e-4, "decoder.*.lora.speech.*": 1e-4},
        data=Mix({"asr": 28, "ast": 28, "sqa": 26, "summary": 1, "audio_understanding": 17}),
        objective=NextToken(),
        ...
    )

`trainable` maps globs of parameter names to peak learning rates: a parameter that no glob matches is frozen. `Budget`
holds the values that depend on the size (steps, tokens per step, length of a row, factor on the learning rates).
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from polyphi.data.sample import Sample
from polyphi.model.config import AdapterConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.types.batch import Batch


@dataclass(frozen=True)
class Mix:
    """Weights of corpora (folder names); only their ratios matter. `adapter` maps a corpus to the adapter of all its
    rows in training: for text rows of the vision stages (inference uses no adapter for text), or the data of a new
    adapter. Corpora in `curriculum` are read in stored order in the first epoch, easy rows first. `late` maps a corpus
    to the number of samples of the others that come before it."""

    weights: Mapping[str, float]
    adapter: Mapping[str, str] = field(default_factory=dict)
    curriculum: tuple[str, ...] = ()
    late: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) <= 0:
            raise ValueError(f"a mix needs positive weights, found {dict(self.weights)}")
        if unknown := {*self.adapter, *self.curriculum, *self.late} - set(self.weights):
            raise ValueError(
                f"expected corpora of the mix in adapter, curriculum and late, found {sorted(unknown)}; "
                f"the mix has {sorted(self.weights)}"
            )
        if self.late and (set(self.late) == set(self.weights) or min(self.late.values()) < 0):
            raise ValueError(
                f"expected `late` counts of 0 or more, and at least one corpus that isn't in `late`; found {self.late}"
            )


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a stage: linear warm-up over `warmup` (a share of the steps), then `decay` down to `floor`
    times the peak over the last `decay_share` of the steps."""

    warmup: float = 0.03
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    decay_share: float = 1.0
    floor: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Factor on the peak learning rate at `step` (0-based) of `steps`."""
        import math

        warmup_steps = max(1, round(self.warmup * steps))
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        decay_steps = max(1, round(self.decay_share * (steps - warmup_steps)))
        progress = min(1.0, max(0.0, (step - (steps - decay_steps)) / decay_steps))
        if self.decay == "constant":
            return 1.0
        shape = 1 - progress if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.floor + (1 - self.floor) * shape


@dataclass(frozen=True)
class Budget:
    """Values of a stage that depend on the size. `context` bounds a row's tokens, `batch_tokens` a step's. `lr_factor`
    multiplies the learning rates of `trainable` (small models need larger ones); `muon_lr_factor`, if it isn't 0, those
    of the matrices of layers, which are then trained by Muon instead of AdamW (optimizer.py)."""

    steps: int
    batch_tokens: int
    context: int
    lr_factor: float = 1.0
    muon_lr_factor: float = 0.0


class Vocabulary(Protocol):
    """The part of a tokenizer that auxiliary heads need."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def encode(self, text: str, /) -> list[int]:
        """Token ids of a text."""


class HasTokenizer(Protocol):
    """The part of a processor that auxiliary heads need."""

    @property
    def tokenizer(self) -> Vocabulary:
        """The model's tokenizer."""


class Objective(Protocol):
    """A training objective: `NextToken` (loss.py), `DPO` (preference.py), `AttentionDecoder` (aed.py) or `Contrastive`
    (contrastive.py), which is also `Comparing`. Its `repr` is part of a run's identity: equal settings must give equal
    text."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The sample as rows of at most `context` tokens each. Raises `Unfit` or `TooLong` for a sample that can't be
        used."""

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> nn.Module | None:
        """The auxiliary head, a module that is trained with the model and not exported; None for no head."""

    def begin(self, model: PhiModel) -> Any:
        """The reference, computed from the model before training, that `loss` needs; None for no reference."""

    def loss(
        self, model: Any, head: Any, reference: Any, batch: Batch
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """(sum of losses over the pack's units, number of units, metrics). `model` is a `PhiModel` or its view of a
        part of each pack (`parallel.Context`), `head` the auxiliary head, `reference` what `begin` returned. A metric
        is a sum over units, or a pair of a sum and its own count; every pack has the same ones, since processes with
        different packs add them up."""


@runtime_checkable
class Comparing(Protocol):
    """Further methods of an objective that compares the samples of a step with each other, whatever the packs and the
    processes: `loss` then gets a pack's own reference."""

    def limits(self, model: PhiModel, micro_tokens: int) -> Mapping[str, int]:
        """The largest size of the inputs of each modality in a pack (`Inputs.size`) that takes about as much memory as
        `micro_tokens` tokens, where the tokens of rows don't bound it."""

    def compare(
        self, model: Any, head: Any, packs: Sequence[Batch], counted: int, together: bool = True
    ) -> Sequence[Any]:
        """The reference of each pack, from a pass over all packs of a step, which may be on another device. Packs after
        the first `counted` only fill in. `together`: with the packs of all processes, which call this together."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the recipe (report 2.2.2), or a user's own. `objective` is one of NextToken, DPO, Contrastive,
    AttentionDecoder. `adapters` adds adapters to those of the start weights: a rank and alpha for a fresh one, or the
    name of the one to copy. If `ema` isn't 0, the exported tensors are averages over the steps, in which each step's
    weights count `ema` times as much as those of the next. `small` is the mix of the sizes below `full`, where it
    differs from `data`, and `auxiliary` the objective's weights of auxiliary losses there, which need annotations that
    only generated samples have [ours]. A stage of a user's own may have "auto" as the learning rate of an adapter,
    which `finetuning/prepare.py` replaces by a number (optimizer.py)."""

    name: str
    start: Mapping[str, str]
    trainable: Mapping[str, float]
    data: Mix
    objective: Objective
    schedule: Schedule = Schedule()
    context: int = 4096
    batch_tokens: int = 1 << 20
    steps: int = 50_000
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    ema: float = 0.0
    copy: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, AdapterConfig | str] = field(default_factory=dict)
    watch: tuple[str, ...] = ()
    small: Mix | None = None
    auxiliary: Mapping[str, float] = field(default_factory=dict)

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.start.values()))

    def learning_rates(self, names: Iterable[str]) -> dict[str, float]:
        """Trained parameters among `names` -> peak learning rates. Raises ValueError if the stage trains nothing, or if
        a glob matches nothing."""
        if not self.trainable:
            raise ValueError(
                f"stage {self.name}: expected `trainable`, globs of parameter names with peak learning rates, such as "
                "{'vision.*': 1e-4}; found none"
            )
        return claim(self.trainable, names)

    def trained(self, names: Iterable[str]) -> list[str]:
        """The trained ones among `names`, which may lack those of the auxiliary head."""
        return [n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in self.trainable)]


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a glob matches (`*` matches dots too). Raises ValueError with the nearest name if there are none."""
    names = list(names)
    if matches := [n for n in names if fnmatch.fnmatchcase(n, pattern)]:
        return matches
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    raise ValueError(
        f"{pattern!r} matches no parameter; the nearest name is {near[0] if near else '(there are none)'!r}"
    )


def claim(patterns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Name -> value of the longest pattern that matches it; names without a match are absent."""
    names = list(names)
    claimed: dict[str, Any] = {}
    for pattern in sorted(patterns, key=len):
        claimed.update({n: patterns[pattern] for n in matching(pattern, names)})
    return claimed
