"""Packing: the samples of a step are grouped into packs that fit the memory. Packing doesn't change the loss: the
forward of a pack equals that of its rows one by one, and sums are divided by counts over all packs.

Several amounts determine the memory, each with a separate limit: tokens (activations of the decoder), and for each
modality what its encoder's memory grows with (`Inputs.size`). Best fit, largest samples first::

    capacity 10, samples of 6 5 4 3 2 tokens     ->     6 4 | 5 3 2
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyphi.types.batch import Batch, pack

Rows = Sequence[Batch]
"""The rows of one sample."""


@dataclass(frozen=True)
class RowSize:
    """Size of rows: tokens, and the size of the inputs of each modality (`Inputs.size`)."""

    tokens: int = 0
    inputs: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> "RowSize":
        sizes = Counter[str]()
        for row in rows:
            sizes.update({name: inputs.size for name, inputs in row.inputs.items()})
        return cls(sum(map(len, rows)), dict(sizes))


@dataclass(frozen=True)
class Capacity:
    """Limits of a pack. A modality needs no separate limit if its tokens limit its inputs well enough: at 448 pixels a
    full crop has 256 tokens, and 8 frames have one."""

    tokens: int
    inputs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, limit in {"tokens": self.tokens, **self.inputs}.items():
            if limit < 1:
                raise ValueError(f"a pack needs a capacity of at least 1 of {name}, found {limit}")

    def _limits(self) -> tuple[int, ...]:
        return self.tokens, *self.inputs.values()

    def _amounts(self, size: RowSize) -> tuple[int, ...]:
        return size.tokens, *(size.inputs.get(name, 0) for name in self.inputs)

    def groups(self, sizes: Sequence[RowSize]) -> list[list[int]]:
        """Return the indices of the samples of each pack, by best fit: largest samples first, each into the pack with
        the least remaining capacity. A sample larger than the capacity is alone. No two packs would fit into one."""
        limits = np.array(self._limits())
        amounts = np.array([self._amounts(size) for size in sizes]).reshape(-1, len(limits))
        remaining = np.empty_like(amounts)
        groups: list[list[int]] = []
        for i in np.argsort(-(amounts / limits).max(1), kind="stable").tolist():
            remaining_after = remaining[: len(groups)] - amounts[i]
            fitting = np.flatnonzero((remaining_after >= 0).all(1))
            if len(fitting):
                best = int(fitting[(remaining_after[fitting] / limits).sum(1).argmin()])
                remaining[best] = remaining_after[best]
                groups[best].append(i)
            else:
                remaining[len(groups)] = limits - amounts[i]
                groups.append([i])
        return sorted(sorted(group) for group in groups)

    def empty(self, size: RowSize) -> float:
        """Return the unused share of the capacity, for the limit that is nearest."""
        pairs = zip(self._amounts(size), self._limits(), strict=True)
        return max(0.0, 1 - max(n / m for n, m in pairs))


@dataclass(frozen=True)
class Pack:
    """A batch, the share of it that this process contributes (1, or 0 for a repeated sample after its own ones, where
    another process has more packs), and the unused share of its capacity."""

    batch: Batch
    share: float = 1.0
    empty: float = 0.0

    @property
    def padding_share(self) -> float:
        """Share of what the encoders read that is padding, for the modality with most of it."""
        return max((inputs.padding_share for inputs in self.batch.inputs.values()), default=0.0)


def pack_step(
    samples: Sequence[Rows],
    capacity: Capacity,
    other_sizes: Sequence[Sequence[RowSize]] = (),
    spare_rows: Rows = (),
) -> list[Pack]:
    """Return this process's packs of a step. The rows of a sample stay in one pack.

    All processes have the same number of packs (sharded layers and sums synchronize in each). `other_sizes` are the
    sizes of the other processes' samples; a process with fewer packs repeats its smallest sample, or `spare_rows`.
    """
    sizes = [RowSize.of(rows) for rows in samples]
    packs = [
        Pack(batch := _pack([samples[i] for i in group]), empty=capacity.empty(RowSize.of([batch])))
        for group in capacity.groups(sizes)
    ]
    max_packs = max(
        [len(packs), *(len(capacity.groups(sizes_there)) for sizes_there in other_sizes)]
    )
    if missing := max_packs - len(packs):
        smallest = min(samples, key=lambda rows: RowSize.of(rows).tokens, default=spare_rows)
        packs += [Pack(_pack([smallest]), share=0.0, empty=1.0)] * missing
    return packs


def _pack(samples: Sequence[Rows]) -> Batch:
    return pack([row for rows in samples for row in rows])
