"""Short questions and answers, one family per skill (numbers and words in eight languages, translation, counting,
scenes, sums, ...); see `polyphi_recipe.synthetic.instructions`. Test questions are held out by content and balanced by
answer."""

from collections.abc import Iterator
from random import Random

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill
from polyphi_recipe.synthetic.instructions import any_family, fresh, testing, training


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        pairs = training(work, rng) if split == "train" else testing(work, rng, work.rows[split])
        for i, qa in enumerate(pairs):
            yield qa.sample(f"instructions-{split}-{i:06d}")

    yield from fill(work, "instructions", make)


# Only verbatim matches: other instances of a template aren't leaks. Questions repeat: families with few of
# them (a hundred numbers, a lexicon) have the same shares as the others.
corpus = Corpus(
    "instructions",
    build,
    steps=against("instructions", ways=("quoted",)),
    fresh=lambda work: fresh("instructions", work, any_family(work)),
)
