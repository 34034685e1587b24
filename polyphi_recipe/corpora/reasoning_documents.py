"""Documents of chains of thought. A share of the drafts has errors, as those of a stronger model would; rejection
sampling by rule removes them (report 2.2.2), so that all solutions are right."""

from collections.abc import Iterator
from itertools import count, islice
from random import Random

from polyphi.data.shards import Sample, document
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, origin
from polyphi_recipe.synthetic.reasoning import (
    ReasoningProblem,
    corrupt,
    draw_problems,
    verify,
)

ERROR_SHARE = 0.15  # share of drafts with a wrong step
PER_DOCUMENT = 2


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    removed = 0

    def drafts(split: str, rng: Random) -> Iterator[tuple[ReasoningProblem, str]]:
        nonlocal removed
        for problem in draw_problems(split, rng):
            draft = corrupt(problem, rng) if rng.random() < ERROR_SHARE else problem.solution
            if verify(problem, draft):
                yield problem, draft
            else:
                removed += 1

    def make(split: str, rng: Random) -> Iterator[Sample]:
        solved = drafts(split, rng)
        for index in count():
            batch = list(islice(solved, PER_DOCUMENT))
            text = "\n\n".join(f"{problem.question}\n{draft}" for problem, draft in batch)
            language = batch[-1][0].language
            meta = {"task": "reasoning_documents", "language": language}
            yield document(f"reasoning-{split}-{index:06d}", text, **origin("polyphi"), **meta)

    yield from fill(work, "reasoning_documents", make)
    if removed:
        work.report(f"reasoning_documents: {removed} drafts with a wrong step removed")


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "reasoning_documents",
    build,
    corpora=("reasoning_sft",),
    steps=against("reasoning_documents", "reasoning_sft", ways=("quoted",)),
)
