"""Copying: strings of digits and words of eight languages, each with the same text as the answer. [ours]

Large language models learn from billions of pages to copy from their context. A small model needs explicit examples,
and all other tasks on its input depend on this skill. Strings of digits come first because they are learned first.
"""

from collections.abc import Iterator
from random import Random

from polyphi.data.shards import Sample
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic.instructions import Family, copy_text, fresh, rows
from polyphi_recipe.synthetic.qa import QA


def draw(work: Work, split: str) -> Family:
    """Return a function that draws a text of a split to copy."""

    def copy(rng: Random) -> QA:
        text, language = copy_text(split, rng, work.languages, longest=9)
        return QA("copy", f"Repeat: {text}", text, language)

    return copy


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    return rows("copying", work, draw)


corpus = Corpus("copying", build, fresh=lambda work: fresh("copying", work, draw(work, "train")))
