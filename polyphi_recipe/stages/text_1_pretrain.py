"""Text 1: pre-training. The whole language model is trained on documents, code, mathematics and translations (report
2.1, 3.1.1).

    polyphi train text_1_pretrain --size nano --out runs/text_1_pretrain

Expected: bits per byte of held-out documents fall fast; the model spells, counts and copies, but doesn't answer yet.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="text_1_pretrain",
    start={},
    # [ours] the report gives the law LR*(D) = B * D^-0.32, not its B
    trainable={"decoder.*": 4e-4},
    # [ours] shares of samples; a document has dozens of times the tokens of an answer. Copying starts first, since all
    # other tasks need it; documents start late: a small model trained on them from the start hardly learns to copy
    # (LOG.md)
    data=Mix(
        {
            "copying": 40,
            "instructions": 57.4,
            "documents": 0.4,
            "code": 0.2,
            "math": 1,
            "translation": 1,
        },
        late=dict.fromkeys(("documents", "code", "math", "translation"), 25_000),
    ),
    small=Mix(
        {
            "copying": 21,
            "instructions": 81.5,
            "documents": 0.4,
            "code": 0.2,
            "math": 7,
            "translation": 1,
        },
        late={"math": 8_000, **dict.fromkeys(("documents", "code", "translation"), 16_000)},
    ),
    objective=NextToken(),
    schedule=Schedule(warmup=0.03, decay="linear", decay_share=0.3, floor=0.1),
    context=4096,
    batch_tokens=4 << 20,
    steps=1_190_000,  # 5T tokens (report 3.1.1)
    weight_decay=0.1,
    watch=("copy", "number_words"),
)
