"""One-line summaries by human authors: the beginning of a help page and its heading, in the languages of the size (a
docstring and its function's name if the Debian packages are unavailable)."""

from collections.abc import Iterator
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import fill, functions, help_pages, interleave, origin, titles


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        def one(language: str) -> Iterator[Sample]:
            for i, (path, body, title) in enumerate(
                titles(language, work, split, Random(rng.random()))
            ):
                meta = {"task": "summary_title", "language": language, "page": path}
                messages = (
                    Message.user(f"Give this text a title.\n{body}"),
                    Message.assistant(title),
                )
                yield Sample(
                    f"summaries-{split}-{language}-{i:05d}",
                    messages,
                    meta=meta,
                    **origin(LIBREOFFICE[language]),
                )

        languages = [language for language in work.languages if help_pages(language, work)]
        yield from (
            interleave([one(language) for language in languages])
            if languages
            else _docstrings(split, rng)
        )

    yield from fill(work, "summaries", make)


def _docstrings(split: str, rng: Random) -> Iterator[Sample]:
    docstrings: set[str] = set()
    for module, name, _, doc in functions(split, rng, 1500):
        if len(doc) > 40 and doc not in docstrings and name.strip("_"):
            id = f"summaries-{split}-{len(docstrings):05d}"
            docstrings.add(doc)
            meta = {"task": "summary_title", "language": "en", "page": module}
            text = " ".join(doc.split())[:400]
            messages = (
                Message.user(f"Give this text a title.\n{text}"),
                Message.assistant(name.strip("_").replace("_", " ")),
            )
            yield Sample(id, messages, meta=meta, **origin("python-stdlib"))


def steps(work: Work) -> list[PipelineStep]:
    return [*held_out(work, "summaries", ways=("quoted", "reworded"))]


corpus = Corpus("summaries", build, steps=steps)
