"""Text 4: alignment. Helpfulness and harmlessness preferences in all eight languages (report 5.1, 5.2). The result
is Phi-4-Mini, which is frozen in all later stages.

    polyphi train text_4_align --size nano --out runs/text_4_align

Expected: harmful requests are refused, similar harmless ones answered; other scores stay the same.
"""

from polyphi.train.preference import DPO
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="text_4_align",
    start={"*": "text_3_post"},
    trainable={"decoder.*": 1e-6},  # [ours], as steps and objective
    data=Mix({"preferences": 1}),
    objective=DPO(beta=0.1, nll=0.2),
    context=4096,
    batch_tokens=1 << 19,
    steps=2_000,
    watch=("refusal", "overrefusal"),
)
