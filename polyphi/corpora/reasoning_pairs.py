"""Preferences between worked solutions. The reasoning model answers training problems; wrong answers are dispreferred,
corrected ones preferred (report 2.2.2). Where it makes too few errors, slips made by rule fill up;
`meta["rejected_by"]` tells which."""

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

from datatrove.pipeline.base import PipelineStep

from polyphi.chat import Message, SamplingParams
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.reasoning import Problem, conversation, corrupt, drawn, verify
from polyphi.curate.text import fill, origin
from polyphi.data.shards import Sample

STAGE = "reasoning_2_sft"
SAMPLED = 0.5  # share of the rows for which the model is asked
AT_ONCE = 32
MAX_TOKENS = 160  # of an answer; the longest solution is shorter


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    model = work.models.get(STAGE)
    if model is None:
        work.tell(f"reasoning_pairs: no {STAGE} to sample from; slips by rule only")

    def make(split: str, rng: Random) -> Iterator[Sample]:
        rows = work.rows[split]
        asked = round(SAMPLED * rows) if model is not None and split == "train" else 0
        problems = list(islice(drawn(split, rng), rows))
        answers = sample(model, problems[:asked], work.seed) if asked else []
        wrong = 0
        for i, problem in enumerate(problems):
            answer = answers[i] if i < len(answers) else None
            chosen, rejected, by = problem.solution, corrupt(problem, rng), "rule"
            if answer is not None and verify(problem, answer):
                chosen = answer
            elif answer is not None and answer.strip():
                rejected, by, wrong = answer, "model", wrong + 1
            messages, meta = conversation(problem, chosen)
            meta = {**meta, "task": "reasoning_pairs", "rejected": rejected, "rejected_by": by}
            yield Sample(
                f"reasoning_pairs-{split}-{i:06d}", messages, meta=meta, **origin("polyphi")
            )
        if asked:
            work.tell(
                f"reasoning_pairs: {wrong} of {asked} sampled answers were wrong and are dispreferred"
            )

    yield from fill(work, "reasoning_pairs", make)


def sample(model: Any, problems: Sequence[Problem], seed: int) -> list[str]:
    """The model's answers at temperature 1, in batches where it can (`generate_many`)."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=seed)
    prompts: list[Sequence[Message]] = [conversation(p, "")[0][:1] for p in problems]
    if hasattr(model, "generate_many"):
        batches = (prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE))
        return [
            done.text for batch in batches for done in model.generate_many(batch, sampling=sampling)
        ]
    return [model.generate(prompt, sampling=sampling).text for prompt in prompts]


def steps(work: Work) -> list[PipelineStep]:
    """Word for word only: other instances of a template aren't leaks."""
    return [*held_out(work, "reasoning_pairs", "reasoning_sft", ways=("quoted",))]


corpus = Corpus("reasoning_pairs", build, corpora=("reasoning_sft",), stages=(STAGE,), steps=steps)
