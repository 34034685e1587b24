"""Preferences between worked solutions, by rejection sampling (judge.py; report 2.2.2). The reasoning model answers
training problems; some wrong answers are fed back to it. A wrong one is dispreferred; preferred is its correction, or
the known solution where the model found none. Where it makes too few errors, slips made by rule fill up;
`meta["rejected_by"]` tells which."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

from polyphi.curate import judge
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill, origin
from polyphi.data.shards import Sample
from polyphi.messages import SamplingParams
from polyphi.synthetic.reasoning import Problem, conversation, corrupt, drawn, posed

STAGE = "reasoning_2_sft"
SAMPLED = 0.5  # share of the rows for which the model is asked
# [ours] share of these problems whose wrong answers are fed back, once: the nano model, which is wrong in most answers,
# put none of 300 right, and asking about all of them took half as long again
FED_BACK = 0.25
ROOM = 1024  # tokens that a model must be able to read for that: problem, answer, complaint, new answer
# The longest solution is shorter.
SAMPLING = SamplingParams(max_tokens=160, temperature=1.0)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    model = work.models.get(STAGE)
    if model is None:
        work.tell(f"reasoning_pairs: no {STAGE} to sample from; slips by rule only")

    def make(split: str, rng: Random) -> Iterator[Sample]:
        problems = list(islice(drawn(split, rng), work.rows[split]))
        sampled = model is not None and split == "train"
        outcomes = sample(model, problems, work) if sampled else []
        for i, problem in enumerate(problems):
            id, slip = f"reasoning_pairs-{split}-{i:06d}", corrupt(problem, rng)
            pair = paired(problem, outcomes[i]) if i < len(outcomes) else None
            if pair is None:
                messages, meta = conversation(problem, problem.solution)
                pair = Sample(id, messages, meta=meta, **origin("polyphi"))
            rejected = {"rejected": slip, "rejected_by": "rule"}
            if "rejected" in pair.meta:
                rejected = {"rejected_by": "model"}
            yield replace(pair, id=id, meta={**pair.meta, "task": "reasoning_pairs", **rejected})

    yield from fill(work, "reasoning_pairs", make)


def sample(model: Any, problems: list[Problem], work: Work) -> list[judge.Outcome]:
    """What the model makes of the first of the problems, many at a time where it can."""
    asked = problems[: round(SAMPLED * len(problems))]
    if hasattr(model, "generate_many"):
        ask = judge.batched(model, SAMPLING)
    else:
        ask = judge.threaded(judge.sampled(model, SAMPLING), 1)
    questions = [posed(problem, f"reasoning_pairs-{i:06d}") for i, problem in enumerate(asked)]
    again = round(FED_BACK * len(questions)) if getattr(model, "context", ROOM) >= ROOM else 0
    outcomes = [
        *judge.solve_many(questions[:again], ask, n=1, rounds=1, seed=work.seed),
        *judge.solve_many(questions[again:], ask, n=1, rounds=0, seed=work.seed),
    ]
    found = judge.count(outcomes)
    wrong = len(outcomes) - found.get("right at round 0", 0)
    work.tell(
        f"reasoning_pairs: {wrong} of {len(outcomes)} sampled answers were wrong and are dispreferred; "
        f"of {again} problems {found.get('right at round 1', 0)} were right when the model tried again"
    )
    return outcomes


def paired(problem: Problem, outcome: judge.Outcome) -> Sample | None:
    """A wrong answer and what is preferred to it; a right answer, which still lacks a wrong one; or neither, where
    the model said nothing."""
    pairs = judge.preferences(outcome, known=problem.solution)
    return next(pairs, None) or next(judge.right(outcome), None)


# Word for word only: other instances of a template aren't leaks.
corpus = Corpus(
    "reasoning_pairs",
    build,
    corpora=("reasoning_sft",),
    stages=(STAGE,),
    steps=against("reasoning_pairs", "reasoning_sft", ways=("quoted",)),
)
