"""Reasoning 2: reasoning fine-tuning on curated chain-of-thought conversations over domains and difficulties
(report 2.2.2; about 200K).

    polyphi train reasoning_2_sft --size nano --out runs/reasoning_2_sft

Expected: problems are solved step by step in the chat format.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="reasoning_2_sft",
    start={"*": "reasoning_1_pretrain"},
    trainable={"decoder.*": 1e-5},  # [ours], as steps
    data=Mix({"reasoning_sft": 1}),
    objective=NextToken(),
    context=16_384,
    batch_tokens=1 << 20,
    steps=2_000,
    watch=("cot_arithmetic", "math500"),
)
