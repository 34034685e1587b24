"""Texts said twice: strings of digits and words of eight languages, and the same again. [ours]

What a language model of any size learns from pages by the billion, a small one must be shown: to find in its context
what it was given, and to say it again. Everything else that it does with its input rests on this. Strings of digits
come first because they are learned first.
"""

from collections.abc import Iterator
from functools import partial
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.text import fill
from polyphi.data.shards import Sample
from polyphi.synthetic.instructions import Ask, copied, fresh


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        for i in range(work.rows[split]):
            yield repeat(work, split, rng).sample(f"copying-{split}-{i:06d}")

    yield from fill(work, "copying", make)


def repeat(work: Work, split: str, rng: Random) -> Ask:
    """A request to say a text again."""
    text, language = copied(split, rng, work.languages, longest=9)
    return Ask("copy", f"Repeat: {text}", text, language)


corpus = Corpus(
    "copying", build, fresh=lambda work: fresh("copying", work, partial(repeat, work, "train"))
)
