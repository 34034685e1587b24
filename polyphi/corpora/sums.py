"""Sums and differences, and now and then another question, so that what is learned already isn't lost. [ours]

A small language model learns sums when it is given thousands of them in a row, and hardly any among all else (LOG.md).
"""

from collections.abc import Iterator
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill
from polyphi.data.shards import Sample
from polyphi.synthetic.instructions import Family, any_family, families, fresh

OTHERS = 0.1
"""Share of other questions."""


def draw(work: Work, split: str) -> Family:
    """A function that draws a question of a split."""
    arithmetic = families(work, split)["arithmetic"]
    other = any_family(work) if split == "train" else arithmetic
    return lambda rng: other(rng) if rng.random() < OTHERS else arithmetic(rng)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        question = draw(work, split)
        for i in range(work.rows[split]):
            yield question(rng).sample(f"sums-{split}-{i:06d}")

    yield from fill(work, "sums", make)


corpus = Corpus(
    "sums",
    build,
    corpora=("instructions",),
    steps=against("sums", "instructions", ways=("quoted",)),
    fresh=lambda work: fresh("sums", work, draw(work, "train")),
)
