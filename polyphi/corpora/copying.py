"""Texts said twice: strings of digits and words of eight languages, and the same again. [ours]

What a language model of any size learns from pages by the billion, a small one must be shown: to find in its context
what it was given, and to say it again. Everything else that it does with its input rests on this. Strings of digits
come first because they are learned first.
"""

from collections.abc import Iterator
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.data.shards import Sample
from polyphi.synthetic.instructions import Ask, Family, copied, fresh, rows


def draw(work: Work, split: str) -> Family:
    """A function that draws a text of a split to copy."""

    def copy(rng: Random) -> Ask:
        text, language = copied(split, rng, work.languages, longest=9)
        return Ask("copy", f"Repeat: {text}", text, language)

    return copy


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    return rows("copying", work, draw)


corpus = Corpus("copying", build, fresh=lambda work: fresh("copying", work, draw(work, "train")))
