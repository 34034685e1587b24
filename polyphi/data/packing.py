"""Rows to packs: a step's samples are dealt to processes and cut into packs that fit the memory. Packing never
changes the loss: the forward of a pack equals that of its rows one by one, and sums are divided by counts over all
packs."""

from collections.abc import Sequence
from dataclasses import dataclass

from polyphi.batch import Batch, pack


@dataclass(frozen=True)
class Pack:
    """A batch and the share of it that this process answers for: 1, or 0 where a process that has run out of samples
    fills in, or 1/processes where all of them work on the same samples."""

    batch: Batch
    share: float = 1.0


def split(samples: Sequence[Sequence[Batch]], micro_tokens: int) -> list[Batch]:
    """Packs of at most `micro_tokens` tokens, in order; the rows of one sample stay together, and a sample that is
    longer than that has a pack of its own."""
    return [
        pack([row for rows in group for row in rows]) for group in _groups(samples, micro_tokens)
    ]


def deal(
    samples: Sequence[Sequence[Batch]],
    micro_tokens: int,
    rank: int = 0,
    world: int = 1,
    together: bool = False,
) -> list[Pack]:
    """This process's packs of a step: every world-th sample is its own, so that one process and many see the same
    step.

    Every process gets equally many packs (sharded layers and sums meet in each); where it lacks one it repeats the
    shortest of the step's samples. `together`: samples are compared with each other, so all of them are one pack, on
    every process.
    """
    if together:
        return [Pack(pack([row for rows in samples for row in rows]), 1 / world)]
    own = [Pack(batch) for batch in split(samples[rank::world], micro_tokens)]
    most = (
        max(len(_groups(samples[r::world], micro_tokens)) for r in range(world))
        if world > 1
        else len(own)
    )
    if missing := most - len(own):
        own += [Pack(pack(min(samples, key=_tokens)), 0.0)] * missing
    return own


def _tokens(rows: Sequence[Batch]) -> int:
    return sum(map(len, rows))


def _groups(samples: Sequence[Sequence[Batch]], micro_tokens: int) -> list[list[Sequence[Batch]]]:
    groups: list[list[Sequence[Batch]]] = []
    room = 0
    for rows in samples:
        size = _tokens(rows)
        if not groups or size > room:
            groups.append([])
            room = micro_tokens
        groups[-1].append(rows)
        room -= size
    return groups
