"""Problems solved step by step in the chat format: sums, chains, stories in eight languages, letters, comparisons.
Solved by rule, or by a teacher for a corpus of one's own (docs/reasoning.md)."""

from collections.abc import Iterator
from functools import partial
from random import Random

from polyphi.curate import judge
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.dedup import EXACT, deduplicate
from polyphi.curate.text import fill, origin
from polyphi.data.shards import Sample
from polyphi.synthetic.reasoning import conversation, drawn, taught


def build(
    work: Work, ask: judge.AskMany | None = None, check: judge.Ask | None = None
) -> Iterator[tuple[str, Sample]]:
    """With `ask`, a teacher, training rows hold its right solutions; `check` is a model that judges what passes the
    rule."""

    def make(split: str, rng: Random) -> Iterator[Sample]:
        problems = drawn(split, rng)
        if ask is not None and split == "train":
            solved = taught(problems, ask, f"sft-{work.seed}", check=check)
        else:
            solved = ((problem, problem.solution) for problem in problems)
        for i, (problem, solution) in enumerate(solved):
            messages, meta = conversation(problem, solution)
            yield Sample(f"reasoning_sft-{split}-{i:06d}", messages, meta=meta, **origin("polyphi"))

    yield from fill(work, "reasoning_sft", make)


# Word for word only: other instances of a template aren't leaks.
corpus = Corpus(
    "reasoning_sft",
    build,
    steps=against("reasoning_sft", ways=("quoted",)),
    across=(partial(deduplicate, EXACT),),
    spare=0.3,
)
