"""Short questions and answers, a family per skill (numbers and words in eight languages, translation, counting,
scenes, sums, ...); see `polyphi.synthetic.instructions`. Test questions are held out by content, balanced by answer."""

from collections.abc import Iterator
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill
from polyphi.data.shards import Sample
from polyphi.synthetic.instructions import any_family, fresh, testing, training


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        asks = training(work, rng) if split == "train" else testing(work, rng, work.rows[split])
        for i, ask in enumerate(asks):
            yield ask.sample(f"instructions-{split}-{i:06d}")

    yield from fill(work, "instructions", make)


# Word for word only: other instances of a template aren't leaks. The same question may come again: families with few
# (a hundred numbers, a lexicon) are asked as often as the others.
corpus = Corpus(
    "instructions",
    build,
    steps=against("instructions", ways=("quoted",)),
    fresh=lambda work: fresh("instructions", work, any_family(work)),
)
