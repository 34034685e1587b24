"""Sums and differences; one row in ten is another question, against forgetting. [ours]

A small language model learns sums from thousands of consecutive examples, but hardly from a mix of all tasks (LOG.md).
"""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic.instructions import Family, any_family, families, fresh, rows

OTHER_SHARE = 0.1
"""Share of other questions in training."""


def draw(work: Work, split: str) -> Family:
    """Return a function that draws a question of a split."""
    arithmetic = families(work, split)["arithmetic"]
    if split == "test":
        return arithmetic
    other = any_family(work)
    return lambda rng: other(rng) if rng.random() < OTHER_SHARE else arithmetic(rng)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    return rows("sums", work, draw)


corpus = Corpus(
    "sums",
    build,
    corpora=("instructions",),
    steps=against("sums", "instructions", ways=("quoted",)),
    fresh=lambda work: fresh("sums", work, draw(work, "train")),
)
