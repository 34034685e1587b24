"""Evaluation during training: the loss of rows that aren't trained on, answers to a few of them, early stopping.

`evaluations.jsonl` has a line for each evaluation: before the first step, every `every` steps, and after the last one::

    {"step": 40, "loss": 1.27, "loss audio": 1.27, "supervised": 512, "answers": ["Hello, how can I help?"]}

An evaluation changes nothing that training depends on: a run with evaluations has the losses of one without, to the
bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyphi.data.draws import MakeRows, Unfit
from polyphi.data.packing import Capacity, Pack, RowSize
from polyphi.data.shards import Shards, join_path
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import TooLong
from polyphi.types.batch import pack

EVALUATIONS = "evaluations.jsonl"
SPLIT = "eval"
"""The split of a corpus folder that holds its evaluation rows."""


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate the rows of `corpora` every `every` steps. `answers(model)` are the model's answers to a few fixed
    prompts. After `patience` evaluations in a row without a lower loss the run ends (None: never), and its result is
    the weights with the lowest loss."""

    corpora: Sequence[str]
    every: int
    answers: Callable[[PhiModel], Sequence[str]] | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("patience", self.patience)):
            if value is not None and value < 1:
                raise ValueError(f"expected `{name}` of at least 1, found {value}")


class EvalRows:
    """The evaluation rows of corpora in packs. Process `rank` of `world` has each world-th pack; all processes have the
    same number of packs. Rows that a stage can't use (longer than its context) are left out and counted. Raises
    ValueError where no row is left."""

    def __init__(
        self,
        data: Path | str,
        corpora: Sequence[str],
        make_rows: MakeRows,
        capacity: Capacity,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._shards = {corpus: Shards(join_path(data, corpus, SPLIT)) for corpus in corpora}
        self._make_rows = make_rows
        self._rank, self._world = rank, world
        self._samples: list[tuple[str, int]] = []
        self.skipped = 0
        sizes = []
        for corpus, shards in self._shards.items():
            for index in range(len(shards)):
                try:
                    rows = make_rows(corpus, shards.sample(index))
                except (TooLong, Unfit):
                    self.skipped += 1
                    continue
                self._samples.append((corpus, index))
                sizes.append(RowSize.of(rows))
        if not sizes:
            raise ValueError(
                f"expected evaluation rows, found none that fit the stage's context ({self.skipped} are too long or "
                "have no answer)"
            )
        self._groups = capacity.groups(sizes)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._samples)

    @property
    def packs_each(self) -> int:
        """The number of packs of each process."""
        return -(-len(self._groups) // self._world)

    @property
    def hashes(self) -> dict[str, list[str]]:
        """The SHA-256 of each corpus's shards."""
        return {n: [s["sha256"] for s in x.manifest["shards"]] for n, x in self._shards.items()}

    def packs(self) -> Iterator[Pack]:
        """Yield the packs of this process; rows are made again each time, so that they take no memory in between."""
        for first in range(0, len(self._groups), self._world):
            number = first + self._rank
            group = self._groups[number if number < len(self._groups) else first]
            samples = (self._samples[i] for i in group)
            rows = [
                row
                for corpus, index in samples
                for row in self._make_rows(corpus, self._shards[corpus].sample(index))
            ]
            yield Pack(pack(rows), share=float(number < len(self._groups)))


@contextmanager
def replaced(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which the parameters named in `values` have these values."""
    before = {name: parameters[name].detach().clone() for name in values}
    _copy(values, parameters)
    try:
        yield
    finally:
        _copy(before, parameters)


def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def line(record: Mapping[str, Any], best_step: int | None) -> str:
    """A line for the log: the loss, the step of the lowest one, the first answer."""
    text = f"  step {record['step']}: evaluation loss {record['loss']:.4f}"
    if "accuracy" in record:  # of preference pairs
        text += f", accuracy {record['accuracy']:.2f}, margin {record['margin']:.3f}"
    if best_step is not None and best_step != record["step"]:
        text += f" (lowest at step {best_step})"
    answers = record.get("answers")
    return text + (f", answer {answers[0]!r:.100}" if answers else "")
