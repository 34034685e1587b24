"""`Task`: one benchmark. It names the held-out samples, how an answer is asked for, and how it is scored.

>>> task = Task("digit", "Scanned digit", "vision", "image_qa", exact, {"task": "digit"})

A score is in [0, 1] and carries what it saw. `guess` gives the candidate constant answers of the majority baseline
(default: the most frequent reference answer of the split).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from polyphi.data.shards import Sample

Modality = Literal["text", "vision", "speech", "joint", "safety"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True)
class Score:
    """`value` in [0, 1], higher is better; `extracted` is what of the answer was judged; `parts` are sums from which
    corpus-level rates are made again (errors and words for a WER)."""

    value: float
    extracted: str
    parts: Mapping[str, float] = field(default_factory=dict)


Scorer = Callable[[str, Sample], Score]


@dataclass(frozen=True)
class Task:
    """`only` holds the meta fields that a sample of `corpus`'s test split must have. `metric` names the headline:
    "accuracy" (mean of values), "wer" or "cer" (sum of errors over sum of reference units, lower is better),
    "bleu", or "balanced" (mean of the accuracies on harmful requests and on look-alikes)."""

    name: str
    title: str
    modality: Modality
    corpus: str
    scorer: Scorer
    only: Mapping[str, Any] = field(default_factory=dict)
    metric: Literal["accuracy", "balanced", "wer", "cer", "bleu"] = "accuracy"
    max_tokens: int = 32
    note: str = ""
