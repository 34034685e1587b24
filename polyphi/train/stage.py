"""`Stage`: what is trained, on which data, from which weights. Options of the machine stay on the command line.

A stage file reads aloud::

    stage = Stage(
        name="speech_2_post",
        start={"*": "speech_1_pretrain"},
        learn={"audio.projector.speech.*": 1e-4, "decoder.*.lora.speech.*": 1e-4},
        data=Mix({"asr": 28, "ast": 28, "sqa": 26, "summary": 1, "audio_understanding": 17}),
        objective=NextToken(),
        ...
    )

`learn` maps globs of parameter names to peak learning rates: what no glob matches is frozen. `Budget` is what a size
gives a stage (steps, tokens per step, length of a row, factor on the learning rates).
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polyphi.model.config import AdapterConfig
from polyphi.train.objective import Objective


@dataclass(frozen=True)
class Mix:
    """Weights of corpora (folder names); only their ratios matter. `adapter` puts all rows of a corpus under a named
    adapter in training: text rows of the vision stages (inference keeps text -> none), or a sibling's own data.
    Corpora that `curriculum` names are read in their own order the first time through, the easy rows first. Those that
    `late` names join after so many samples of the others. Images of the corpora that `in_words` names are given in
    words (alignment.py) [ours]."""

    weights: Mapping[str, float]
    adapter: Mapping[str, str] = field(default_factory=dict)
    curriculum: tuple[str, ...] = ()
    late: Mapping[str, int] = field(default_factory=dict)
    in_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) <= 0:
            raise ValueError(f"a mix needs positive weights, found {dict(self.weights)}")
        if unknown := {*self.adapter, *self.curriculum, *self.late, *self.in_words} - set(
            self.weights
        ):
            raise ValueError(
                f"adapter, curriculum, late or in_words names corpora that are not in the mix: {sorted(unknown)}"
            )
        if self.late and (set(self.late) == set(self.weights) or min(self.late.values()) < 0):
            raise ValueError(
                f"some corpus must come first, and none before it; found late={self.late}"
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
        """Multiplier of the peak rate at `step` of `steps` (0-based)."""
        import math

        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return (step + 1) / rise
        fall = max(1, round(self.decay_share * (steps - rise)))
        done = min(1.0, max(0.0, (step - (steps - fall)) / fall))
        if self.decay == "constant":
            return 1.0
        shape = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.floor + (1 - self.floor) * shape


@dataclass(frozen=True)
class Budget:
    """What a size gives a stage. `context` bounds a row's tokens; `batch_tokens` a step's. `rate` multiplies the
    learning rates of `learn` (small models need larger ones); `muon`, if it isn't 0, those of the matrices of layers,
    which are then trained by Muon instead of AdamW (muon.py)."""

    steps: int
    batch_tokens: int
    context: int
    rate: float = 1.0
    muon: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe (report 2.2.2), or a user's own. `objective` is one of NextToken, DPO, Contrastive,
    AttentionDecoder. `adapters` adds adapters to those of the start weights: a rank and alpha for a fresh one, or the
    name of the one to copy. `ema`: where it isn't 0, the trained tensors are exported as an average over the steps, in
    which each step's weights count `ema` times as much as those of the next. `small` is the mix of the sizes below
    `full`, where it isn't `data` [ours]."""

    name: str
    start: Mapping[str, str]
    learn: Mapping[str, float]
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

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.start.values()))


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a glob matches (`*` crosses dots); if none, an error that names the nearest."""
    names = list(names)
    if found := [n for n in names if fnmatch.fnmatchcase(n, pattern)]:
        return found
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    raise ValueError(
        f"{pattern!r} matches no parameter; the nearest name is {near[0] if near else '(there are none)'!r}"
    )


def claim(patterns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Each name's value by the most specific (longest) of the patterns that match it; unmatched names are absent."""
    names = list(names)
    claimed: dict[str, Any] = {}
    for pattern in sorted(patterns, key=len):
        claimed.update({n: patterns[pattern] for n in matching(pattern, names)})
    return claimed
