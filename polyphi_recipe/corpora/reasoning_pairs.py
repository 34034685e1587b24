"""Preference pairs of step-by-step solutions by rejection sampling (judge.py; report 2.2.2). The reasoning model
answers training problems; some wrong answers are returned to it for a second attempt. Dispreferred is a wrong answer;
preferred is its correction, or else the reference solution. If the model makes too few errors, the remaining rows have
errors by rule; `meta["rejected_by"]` is "model" or "rule". A teacher of the recipe file corrects the former and
replaces the latter (polyphi_recipe/syntheses/reasoning.py)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

from polyphi.data.shards import Sample
from polyphi.types.sampling import SamplingParams
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, origin
from polyphi_recipe.syntheses import judge
from polyphi_recipe.synthetic.reasoning import (
    ReasoningProblem,
    conversation,
    corrupt,
    draw_problems,
    sampling_problem,
)

STAGE = "reasoning_2_sft"
SAMPLED_SHARE = 0.5  # share of the rows with model answers
# [ours] share of these problems whose wrong answers are returned to the model, once: the nano model, which is wrong in
# most answers, corrected none of 300, and a second attempt for all of them took half as long again
FEEDBACK_SHARE = 0.25
MIN_CONTEXT = (
    1024  # context length in tokens for a second attempt: problem, answer, feedback, new answer
)
# The longest solution is shorter.
SAMPLING = SamplingParams(max_tokens=160, temperature=1.0)


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    model = work.models.get(STAGE)
    if model is None:
        work.report(f"reasoning_pairs: no {STAGE} to sample from; slips by rule only")

    def make(split: str, rng: Random) -> Iterator[Sample]:
        problems = list(islice(draw_problems(split, rng), work.rows[split]))
        sampled = model is not None and split == "train"
        outcomes = sample(model, problems, work) if sampled else []
        for i, problem in enumerate(problems):
            id, corrupted = f"reasoning_pairs-{split}-{i:06d}", corrupt(problem, rng)
            pair = preference_pair(problem, outcomes[i]) if i < len(outcomes) else None
            if pair is None:
                messages, meta = conversation(problem, problem.solution)
                pair = Sample(id, messages, meta=meta, **origin("polyphi"))
            rejected = {"rejected": corrupted, "rejected_by": "rule"}
            if "rejected" in pair.meta:
                rejected = {"rejected_by": "model"}
            yield replace(pair, id=id, meta={**pair.meta, "task": "reasoning_pairs", **rejected})

    yield from fill(work, "reasoning_pairs", make)


def sample(model: Any, problems: list[ReasoningProblem], work: Work) -> list[judge.ProblemOutcome]:
    """Return the model's outcomes for the first `SAMPLED_SHARE` of the problems, batched if the model supports it."""
    sampled = problems[: round(SAMPLED_SHARE * len(problems))]
    if hasattr(model, "generate_many"):
        ask = judge.batched(model, SAMPLING)
    else:
        ask = judge.threaded(judge.sampled(model, SAMPLING), 1)
    questions = [
        sampling_problem(problem, f"reasoning_pairs-{i:06d}") for i, problem in enumerate(sampled)
    ]
    # The model's own context: that of a `Phi` may be less, by the memory of this machine.
    config = getattr(model, "config", None)
    is_long = config is None or config.decoder.max_position_embeddings >= MIN_CONTEXT
    with_feedback = round(FEEDBACK_SHARE * len(questions)) if is_long else 0
    outcomes = [
        *judge.solve_many(questions[:with_feedback], ask, n=1, rounds=1, seed=work.seed),
        *judge.solve_many(questions[with_feedback:], ask, n=1, rounds=0, seed=work.seed),
    ]
    counts = judge.count(outcomes)
    wrong = len(outcomes) - counts.get("right at round 0", 0)
    work.report(
        f"reasoning_pairs: {wrong} of {len(outcomes)} sampled answers were wrong and are dispreferred; "
        f"of {with_feedback} problems {counts.get('right at round 1', 0)} were right when the model tried again"
    )
    return outcomes


def preference_pair(problem: ReasoningProblem, outcome: judge.ProblemOutcome) -> Sample | None:
    """Return a pair of a wrong and a preferred answer, or a right answer without a wrong one, or None if the model
    returned no answer."""
    pairs = judge.preferences(outcome, known=problem.solution)
    return next(pairs, None) or next(judge.right(outcome), None)


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "reasoning_pairs",
    build,
    corpora=("reasoning_sft",),
    stages=(STAGE,),
    steps=against("reasoning_pairs", "reasoning_sft", ways=("quoted",)),
)
