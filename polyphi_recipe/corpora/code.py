"""Short functions of Python's standard library. All functions of a module are in the same split."""

from collections.abc import Iterator
from functools import partial
from random import Random

from polyphi.data.shards import Sample, document
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.dedup.dedup import TEXTS, deduplicate
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, functions, origin


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        for i, (module, name, source, _) in enumerate(functions(split, rng, 500)):
            meta = {"task": "code", "language": "python", "function": f"{module}.{name}"}
            yield document(f"code-{split}-{i:06d}", source, **origin("python-stdlib"), **meta)

    yield from fill(work, "code", make)


# Only verbatim matches: short functions are similar without being copies.
corpus = Corpus(
    "code",
    build,
    corpora=("fim",),
    steps=against("code", "fim", ways=("quoted",)),
    across=(partial(deduplicate, TEXTS),),
    spare=0.15,
)
