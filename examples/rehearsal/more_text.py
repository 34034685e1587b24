"""Continued pre-training of a given language model on raw pages: a stage that starts from a part of the recipe file."""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="more_text",
    start={"*": "decoder"},
    trainable={"decoder.*": 1e-4},
    data=Mix({"pages": 1}),
    objective=NextToken(),
    context=256,
    batch_tokens=512,
    steps=2,
)
