"""Reasoning 3: reasoning preferences. Filtered wrong answers are rejected, corrected ones chosen (report 2.2.2; 300K
pairs).

    polyphi train reasoning_3_dpo --size nano --out runs/reasoning_3_dpo

Expected: fewer errors in long sums; the format stays the same.
"""

from polyphi.train.preference import DPO
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="reasoning_3_dpo",
    start={"*": "reasoning_2_sft"},
    trainable={"decoder.*": 5e-7},  # [ours], as steps and objective
    data=Mix({"reasoning_pairs": 1}),
    objective=DPO(beta=0.1, nll=0.2),
    context=16_384,
    batch_tokens=1 << 19,
    steps=3_000,
    watch=("cot_arithmetic", "math500"),
)
