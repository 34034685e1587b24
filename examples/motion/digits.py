"""The baseline: an adapter of the same rank reads the series as digits, without encoder (OpenTSLM's own baseline)."""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage
from polyphi.types.modality import AdapterConfig

stage = Stage(
    name="digits",
    start={"*": "hf:microsoft/Phi-4-mini-instruct"},
    adapters={"digits": AdapterConfig(rank=16, alpha=32.0)},
    trainable={"decoder.*.lora.digits.*": 5e-4},
    data=Mix({"digits": 1}, adapter={"digits": "digits"}),
    objective=NextToken(),
    schedule=Schedule(warmup=0.05, decay="cosine"),
    context=1024,
    batch_tokens=8192,
    steps=400,
)
