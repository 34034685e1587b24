"""Documents longer than the first context length: joined help pages of one folder, some 9,500 characters each."""

from collections.abc import Iterator
from functools import partial
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, document
from polyphi.text.lexicon import LANGUAGES
from polyphi_recipe.corpora.documents import cleaned
from polyphi_recipe.curate.corpus import Corpus, Work
from polyphi_recipe.curate.decontaminate import held_out
from polyphi_recipe.curate.dedup import TEXTS, deduplicate
from polyphi_recipe.curate.sources import LIBREOFFICE
from polyphi_recipe.curate.text import (
    fill,
    functions,
    help_pages,
    interleave,
    long_documents,
    origin,
)

CHARACTERS = 9_500  # three to four thousand tokens of a small vocabulary


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        def one(language: str) -> Iterator[Sample]:
            texts = long_documents(language, work, split, Random(rng.random()), CHARACTERS)
            for i, (path, text) in enumerate(texts):
                meta = {"task": "long_documents", "language": language, "page": path}
                yield document(
                    f"long-{split}-{language}-{i:05d}",
                    text,
                    **origin(LIBREOFFICE[language]),
                    **meta,
                )

        languages = [language for language in LANGUAGES if help_pages(language, work)]
        yield from (
            interleave([one(language) for language in languages])
            if languages
            else _code(split, rng)
        )

    yield from fill(work, "long_documents", make)


def _code(split: str, rng: Random) -> Iterator[Sample]:
    """Yield joined functions of the standard library (fallback without Debian packages)."""
    joined: list[str] = []
    for module, name, source, _ in functions(split, rng):
        joined.append(source)
        if sum(map(len, joined)) > CHARACTERS:
            meta = {"task": "long_documents", "language": "en", "page": module}
            id = f"long-{split}-{module}.{name}"
            yield document(id, "\n\n".join(joined), **origin("python-stdlib"), **meta)
            joined = []


def steps(work: Work) -> list[PipelineStep]:
    """Return the steps of `documents`, here also against `documents`."""
    return [*cleaned(work), *held_out(work, "long_documents", "documents", "summaries")]


corpus = Corpus(
    "long_documents",
    build,
    corpora=("documents", "summaries"),
    steps=steps,
    across=(partial(deduplicate, TEXTS),),
    spare=2.0,
)
