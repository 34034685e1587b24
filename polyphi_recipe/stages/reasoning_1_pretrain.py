"""Reasoning 1: reasoning pre-training. Training of the language model continues on chain-of-thought documents, from
which wrong ones were removed (report 2.2.2; about 60B tokens).

    polyphi train reasoning_1_pretrain --size nano --out runs/reasoning_1_pretrain

Expected: step-by-step solutions in the right format. It is a separate model; Phi-4-Mini isn't changed.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="reasoning_1_pretrain",
    start={"*": "text_4_align"},
    trainable={"decoder.*": 5e-5},  # [ours]
    data=Mix({"reasoning_documents": 90, "math": 10}),  # [ours] shares
    objective=NextToken(),
    context=16_384,
    batch_tokens=4 << 20,
    steps=14_300,  # 60B tokens (report 2.2.2)
    weight_decay=0.1,
    watch=("cot_arithmetic", "math500"),
)
