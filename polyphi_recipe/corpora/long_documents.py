"""Documents longer than the first context length: joined help pages of one folder, some 9,500 characters each.

At sizes with the public vocabulary, the context of text 2 is 32k (lab) or 128k tokens (full; report 2.1). There,
documents have all lengths from text 1's context to this one: the help pages of a folder and the next, and all modules
of a package of Python's standard library.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count, repeat
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, document
from polyphi_recipe.corpora.documents import cleaned
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.dedup.dedup import TEXTS, deduplicate
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import (
    fill,
    functions,
    help_pages,
    interleave,
    long_documents,
    origin,
    packages,
    packed,
    pages_by_folder,
)
from polyphi_recipe.text.lexicon import LANGUAGES

CHARACTERS = 9_500  # three to four thousand tokens of a small vocabulary
SHORTEST = 4096
"""Tokens of the shortest packed document: the context of text 1."""
CHARACTERS_PER_TOKEN = {
    "en": 4.6,
    "fr": 4.3,
    "de": 4.2,
    "it": 3.9,
    "pt": 4.2,
    "es": 4.3,
    "zh": 1.5,
    "ja": 1.5,
    "python": 4.1,
}
"""Measured characters per token of the help pages and the standard library in the public vocabulary."""
FILL = {"pages": 1.2, "python": 0.92}
"""[ours] Length of the longest document by these means, over the context. `steps` removes about a quarter of the help
pages, whose text repeats that of held-out pages, and hardly any code. Training cuts what is longer than its context."""


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        def one(language: str) -> Iterator[Sample]:
            own = Random(rng.random())
            if work.document_tokens is None:
                texts = long_documents(language, work, split, own, CHARACTERS)
            else:
                pages = pages_by_folder(language, work, split, own)
                texts = packed(pages, *_lengths(language, work.document_tokens, own))
            for i, (path, text) in enumerate(texts):
                meta = {"task": "long_documents", "language": language, "page": path}
                yield document(
                    f"long-{split}-{language}-{i:05d}",
                    text,
                    **origin(LIBREOFFICE[language]),
                    **meta,
                )

        streams = [one(language) for language in LANGUAGES if help_pages(language, work)]
        if work.document_tokens is not None:
            streams.append(_packages(split, work.document_tokens, rng))
        yield from interleave(streams) if streams else _code(split, rng)

    yield from fill(work, "long_documents", make)


def _lengths(language: str, tokens: int, rng: Random) -> tuple[Iterator[int], int]:
    """Return (lengths of documents without end, the longest), in characters of a language, for a context of
    `tokens`."""
    per_token, most = CHARACTERS_PER_TOKEN[language], FILL["pages"] * tokens
    lengths = (int(per_token * rng.uniform(SHORTEST, most)) for _ in count())
    return lengths, int(per_token * most)


def _packages(split: str, tokens: int, rng: Random) -> Iterator[Sample]:
    """Yield packages of the standard library with all their modules; large ones in parts, small ones not at all."""
    lengths = SHORTEST, FILL["python"] * tokens
    least, most = (int(CHARACTERS_PER_TOKEN["python"] * n) for n in lengths)
    for package, modules in packages(split, rng):
        for i, (module, text) in enumerate(packed(modules, repeat(most), most)):
            if len(text) >= least:
                meta = {"task": "long_documents", "language": "en", "page": module}
                id = f"long-{split}-{package}-{i:05d}"
                yield document(id, text, **origin("python-stdlib"), **meta)


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
    """Return the steps of `documents`, here also against `documents`. Packed documents lose the pages with held-out
    text, because nearly each of them has some. They have no language filter: it reads the first 1,000 characters, and
    would drop a third of the packages of code."""
    names = ("long_documents", "documents", "summaries")
    if work.document_tokens is None:
        return [*cleaned(work), *held_out(work, *names)]
    return [PiiFilter(), *held_out(work, *names, passages=True)]


corpus = Corpus(
    "long_documents",
    build,
    corpora=("documents", "summaries"),
    steps=steps,
    across=(partial(deduplicate, TEXTS),),
    spare=2.0,
)
