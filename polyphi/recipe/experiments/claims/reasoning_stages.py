"""C6: each of the three reasoning stages helps (report 2.2.2, Table 9).

polyphi claims C6 --out runs/nano
"""

from collections.abc import Iterator
from itertools import pairwise

from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Laboratory

TASKS = ("cot_arithmetic", "cot_story")
STAGES = ("reasoning_1_pretrain", "reasoning_2_sft", "reasoning_3_dpo")


def run(lab: Laboratory) -> Iterator[Effect]:
    """Final answers to held-out problems before the first stage and after each."""
    found = {"text_4_align": [lab.scores(lab.after("text_4_align"), *TASKS)]}
    for i, stage in enumerate(STAGES):
        found[stage] = [lab.scores(arm, *TASKS) for arm in lab.again(*STAGES[: i + 1])]
    for before, after in pairwise(found):
        pairs = [
            ("accuracy", paired([s[t] for s in found[before]], [s[t] for s in found[after]]))
            for t in TASKS
            if t in found[before][0]
        ]
        yield contrast(f"right after {after} less after {before}", *pairs)


claim = Claim(
    name="C6",
    title="Three reasoning stages",
    says="Pre-training, fine-tuning and preferences each improve reasoning.",
    where="2.2.2, Table 9",
    experiment="Final answers of held-out worked problems after each stage, stages trained with several seeds",
    run=run,
)
