"""Problems solved step by step in the chat format: sums, chains, stories in eight languages, letters, comparisons."""

from collections.abc import Iterator
from functools import partial
from random import Random

from datatrove.pipeline.base import PipelineStep

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.dedup import EXACT, deduplicate
from polyphi.curate.reasoning import conversation, drawn
from polyphi.curate.text import fill, origin
from polyphi.data.shards import Sample


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        for i, problem in enumerate(drawn(split, rng)):
            messages, meta = conversation(problem, problem.solution)
            yield Sample(f"reasoning_sft-{split}-{i:06d}", messages, meta=meta, **origin("polyphi"))

    yield from fill(work, "reasoning_sft", make)


def steps(work: Work) -> list[PipelineStep]:
    """Word for word only: other instances of a template aren't leaks."""
    return [*held_out(work, "reasoning_sft", ways=("quoted",))]


corpus = Corpus(
    "reasoning_sft", build, steps=steps, across=(partial(deduplicate, EXACT),), spare=0.3
)
