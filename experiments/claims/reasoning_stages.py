"""C6: each of the three reasoning stages improves reasoning (report 2.2.2, Table 9).

python -m experiments claims C6 --out runs/nano
"""

from collections.abc import Iterator
from itertools import pairwise

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import ClaimRunner

TASKS = ("cot_arithmetic", "cot_story")
STAGES = ("reasoning_1_pretrain", "reasoning_2_sft", "reasoning_3_dpo")


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Accuracy of final answers to held-out problems before the first stage and after each stage."""
    scores_after = {"text_4_align": [runner.scores(runner.after("text_4_align"), *TASKS)]}
    for i, stage in enumerate(STAGES):
        scores_after[stage] = [
            runner.scores(arm, *TASKS) for arm in runner.retrained(*STAGES[: i + 1])
        ]
    for before, after in pairwise(scores_after):
        pairs = [
            (
                "accuracy",
                paired([s[t] for s in scores_after[before]], [s[t] for s in scores_after[after]]),
            )
            for t in TASKS
            if t in scores_after[before][0]
        ]
        yield contrast(f"accuracy after {after} minus after {before}", *pairs)


claim = Claim(
    name="C6",
    title="Three reasoning stages",
    says="Pre-training, fine-tuning and preferences each improve reasoning.",
    where="2.2.2, Table 9",
    experiment="Final answers to held-out problems after each stage, stages trained with several seeds",
    run=run,
)
