"""Chains of thought to read. As a stronger model's would, a share of the drafts has slips; rejection sampling by rule
removes those (report 2.2.2), so that every solution here is right."""

from collections.abc import Iterator
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.reasoning import corrupt, drawn, verify
from polyphi.curate.text import fill, origin
from polyphi.data.shards import Sample, document

SLIPS = 0.15  # share of drafts with a wrong step
PER_DOCUMENT = 2


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    removed = 0

    def make(split: str, rng: Random) -> Iterator[Sample]:
        nonlocal removed
        kept: list[str] = []
        made = 0
        for problem in drawn(split, rng):
            draft = corrupt(problem, rng) if rng.random() < SLIPS else problem.solution
            if not verify(problem, draft):
                removed += 1
                continue
            kept.append(f"{problem.question}\n{draft}")
            if len(kept) == PER_DOCUMENT:
                meta = {"task": "reasoning_documents", "language": problem.language}
                yield document(
                    f"reasoning-{split}-{made:06d}", "\n\n".join(kept), **origin("polyphi"), **meta
                )
                kept, made = [], made + 1

    yield from fill(work, "reasoning_documents", make)
    work.tell(f"reasoning_documents: {removed} drafts with a wrong step removed")


def steps(work: Work) -> list[PipelineStep]:
    """Word for word only: other instances of a template aren't leaks."""
    return [*held_out(work, "reasoning_documents", "reasoning_sft", ways=("quoted",))]


corpus = Corpus("reasoning_documents", build, corpora=("reasoning_sft",), steps=steps)
