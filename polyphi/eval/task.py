"""`Task`: one benchmark. It names the held-out samples, how an answer is asked for, and how it is scored.

>>> task = Task("digits", "Scanned digits", "vision", corpus="image_qa", only={"task": "digit"}, scorer=exact)

A score is in [0, 1] and carries what it saw. `guess` gives the candidate constant answers of the majority baseline
(default: the most frequent reference answer of the split).
"""

import importlib
import pkgutil
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
    "bleu"."""

    name: str
    title: str
    modality: Modality
    corpus: str
    scorer: Scorer
    only: Mapping[str, Any] = field(default_factory=dict)
    metric: Literal["accuracy", "wer", "cer", "bleu"] = "accuracy"
    max_tokens: int = 32
    note: str = ""


def find(*names: str) -> list[Task]:
    """The tasks of `eval/tasks/MODALITY/*.py`, each file's `task`, by modality and file; all, or those named.

    A task is found by where its file is: there is no registry.
    """
    from polyphi.eval import tasks

    found: list[Task] = []
    for module in sorted(
        pkgutil.walk_packages(tasks.__path__, tasks.__name__ + "."), key=lambda m: m.name
    ):
        if not module.ispkg:
            held = getattr(importlib.import_module(module.name), "task", None)
            found += [held] if isinstance(held, Task) else []  # others are benchmarks
    found.sort(key=lambda t: MODALITIES.index(t.modality))
    if twice := {t.name for t in found if [u.name for u in found].count(t.name) > 1}:
        raise ValueError(
            f"two task files have the same task name: {sorted(twice)}; a name must be unique"
        )
    if unknown := set(names) - {t.name for t in found}:
        raise ValueError(
            f"no task is called {sorted(unknown)}; the tasks are {', '.join(t.name for t in found)}"
        )
    return [t for t in found if not names or t.name in names]
