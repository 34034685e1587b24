"""Rows to packs: a step's samples are cut into packs that fit the memory. Packing never changes the loss: the forward
of a pack equals that of its rows one by one, and sums are divided by counts over all packs.

Three things fill a memory, each with a bound of its own: tokens (the decoder's activations), crops (the image
encoder's) and log-mel frames (the audio encoder's). A sample goes into the pack that it fills best, large samples
first::

    room 10, samples of 6 5 4 3 2 tokens     ->     6 4 | 5 3 2
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyphi.batch import Batch, pack

Rows = Sequence[Batch]
"""The rows of one sample."""
BOUNDLESS = 1 << 62


@dataclass(frozen=True)
class Size:
    """What rows hold: tokens, crops, log-mel frames of 10 ms."""

    tokens: int = 0
    crops: int = 0
    frames: int = 0

    @classmethod
    def of(cls, rows: Rows) -> "Size":
        return cls(
            sum(map(len, rows)),
            sum(row.crop_count for row in rows),
            sum(0 if row.mels is None else len(row.mels) for row in rows),
        )


@dataclass(frozen=True)
class Room:
    """What a pack may hold. Crops and frames need no bound of their own where their tokens bound them well enough: at
    448 pixels a full crop brings 256 tokens, and 8 frames bring one."""

    tokens: int
    crops: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if (least := min(n for n in self._bounds())) < 1:
            raise ValueError(f"a pack needs room for at least one of each kind, found {least}")

    def _bounds(self) -> tuple[int, int, int]:
        return (
            self.tokens,
            BOUNDLESS if self.crops is None else self.crops,
            BOUNDLESS if self.frames is None else self.frames,
        )

    def groups(self, sizes: Sequence[Size]) -> list[list[int]]:
        """Which samples share a pack, by best fit: the fullest sample first, each into the pack where the least stays
        empty. A sample larger than the room is alone. No two of the packs would fit into one."""
        bounds = np.array(self._bounds())
        held = np.array([(s.tokens, s.crops, s.frames) for s in sizes]).reshape(-1, 3)
        left = np.empty_like(held)
        groups: list[list[int]] = []
        for i in np.argsort(-(held / bounds).max(1), kind="stable").tolist():
            after = left[: len(groups)] - held[i]
            fitting = np.flatnonzero((after >= 0).all(1))
            if len(fitting):
                best = int(fitting[(after[fitting] / bounds).sum(1).argmin()])
                left[best] = after[best]
                groups[best].append(i)
            else:
                left[len(groups)] = bounds - held[i]
                groups.append([i])
        return sorted(sorted(group) for group in groups)

    def empty(self, size: Size) -> float:
        """Share of the room that stays empty: of the bound that is nearest."""
        held = (size.tokens, size.crops, size.frames)
        return max(0.0, 1 - max(n / m for n, m in zip(held, self._bounds(), strict=True)))


@dataclass(frozen=True)
class Pack:
    """A batch, the share of it that this process answers for (1, or 0 where a process that has run out of samples
    fills in, or 1/processes where all of them work on the same samples), and the share of its room that is empty."""

    batch: Batch
    share: float = 1.0
    empty: float = 0.0

    @property
    def blank(self) -> float:
        """Share of the image encoder's patches that show no picture: padding of crops at a picture's edge."""
        masks = self.batch.crop_masks
        return 0.0 if masks is None else 1 - masks.sum().item() / masks.numel()


def deal(
    samples: Sequence[Rows],
    room: Room,
    others: Sequence[Sequence[Size]] = (),
    spare: Rows = (),
) -> list[Pack]:
    """This process's packs of a step. The rows of a sample stay together.

    Every process gets equally many packs (sharded layers and sums meet in each): `others` says what the samples of the
    other processes hold, and where this one lacks a pack it repeats its smallest sample, or takes `spare`.
    """
    sizes = [Size.of(rows) for rows in samples]
    packs = [
        Pack(batch := _packed([samples[i] for i in group]), empty=room.empty(Size.of([batch])))
        for group in room.groups(sizes)
    ]
    most = max([len(packs), *(len(room.groups(theirs)) for theirs in others)])
    if missing := most - len(packs):
        smallest = min(samples, key=lambda rows: Size.of(rows).tokens, default=spare)
        packs += [Pack(_packed([smallest]), share=0.0, empty=1.0)] * missing
    return packs


def whole(samples: Sequence[Rows], processes: int = 1) -> list[Pack]:
    """A step as one pack, on every process: its samples are compared with each other."""
    return [Pack(_packed(samples), share=1 / processes)]


def _packed(samples: Sequence[Rows]) -> Batch:
    return pack([row for rows in samples for row in rows])
