"""The stage that teaches motion.py's modality: encoder, projector and adapter together; everything else is frozen."""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="motion",
    start={"*": "hf:microsoft/Phi-4-mini-instruct"},  # --model takes its place
    trainable={"motion.*": 1e-3, "decoder.*.lora.motion.*": 5e-4},
    data=Mix({"motion": 1}),
    objective=NextToken(),
    schedule=Schedule(warmup=0.05, decay="cosine"),
    context=1024,
    batch_tokens=1024,
    steps=400,
)
