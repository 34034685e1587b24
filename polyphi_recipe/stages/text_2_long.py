"""Text 2: long context. Documents longer than the original context use the long LongRoPE table [ours: the report
mentions LongRoPE and 128K, not the stage].

    polyphi train text_2_long --size nano --out runs/text_2_long

Expected: the loss beyond the original context doesn't rise any more; that of short documents stays the same.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="text_2_long",
    start={"*": "text_1_pretrain"},
    trainable={"decoder.*": 1e-4},
    data=Mix({"long_documents": 60, "documents": 20, "math": 10, "translation": 10}),
    objective=NextToken(),
    context=131_072,
    batch_tokens=4 << 20,
    steps=2_400,
    weight_decay=0.1,
    watch=("copy", "number_words"),
)
