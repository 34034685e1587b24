"""Rows to packs: a step's draws, dealt to processes and cut into packs that fit the memory. Packing never changes the loss."""

from collections.abc import Sequence

from polyphi.batch import Batch, pack


def split(samples: Sequence[Sequence[Batch]], micro_tokens: int) -> list[Batch]:
    """Packs of at most `micro_tokens` tokens, in order; the rows of one sample stay together, and a sample that is longer than
    that has a pack of its own."""
    packs: list[Batch] = []
    held: list[Batch] = []
    for rows in samples:
        if held and sum(map(len, held)) + sum(map(len, rows)) > micro_tokens:
            packs.append(pack(held))
            held = []
        held += rows
    return [*packs, pack(held)] if held else packs


def deal(samples: Sequence[Sequence[Batch]], rank: int, world: int) -> list[Sequence[Batch]]:
    """This process's share of a step's samples: every world-th, so that one process and many see the same step."""
    return list(samples[rank::world])
