"""Text 3: post-training. Function calling, summaries, instructions, and fill-in-the-middle code (report 2.2.2, 3.1).

    polyphi train text_3_post --size nano --out runs/text_3_post

Expected: the model answers in the chat format and stops at <|end|>; tool calls are valid JSON.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

SMALL = {
    "sums": 6,
    "instructions": 83,
    "tools": 13,
    "summaries": 8,
    "fim": 6,
    "preferences": 22,
}
stage = Stage(
    name="text_3_post",
    start={"*": "text_2_long"},
    trainable={"decoder.*": 2e-5},
    # [ours] shares of samples
    data=Mix({"instructions": 84, "tools": 6, "summaries": 2, "fim": 3, "preferences": 5}),
    small=Mix(
        SMALL,
        # [ours] sums start first: a small model learns them without other tasks, but hardly among them (LOG.md)
        late={corpus: 8_000 for corpus in SMALL if corpus != "sums"},
    ),
    objective=NextToken(),
    context=4096,
    batch_tokens=1 << 20,
    steps=20_000,
    watch=("arithmetic", "number_words", "tool_call", "gsm8k", "bfcl"),
)
