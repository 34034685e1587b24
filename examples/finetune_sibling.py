"""A sibling: a third adapter with its own name, in addition to vision and speech, which stay unchanged.

    polyphi train examples/finetune_sibling.py --data scans.jsonl --out runs/medical
    polyphi chat runs/medical/model --image scan.png --adapter medical "What does it show?"

A line of scans.jsonl: {"image": "scan.png", "question": "What does it show?", "answer": "A fracture."}. Rows may hold
clips instead, or text alone: all of the corpus goes by the adapter that `Mix.adapter` names.

Expect: the loss falls within the first hundred steps. Without --adapter every answer is what it was, bit for bit. The
transformers library reads the sibling as runs/medical/model/medical-lora.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="medical",
    start={"*": "hf:microsoft/Phi-4-multimodal-instruct"},  # --model takes its place
    # a copy of vision, rank 256; a fresh, smaller one is AdapterConfig(rank=32, alpha=64.0) of polyphi.model.config
    adapters={"medical": "vision"},
    trainable={"decoder.*.lora.medical.*": 5e-5},
    data=Mix({"scans": 1}, adapter={"scans": "medical"}),
    objective=NextToken(max_crops=16),
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=8192,
    batch_tokens=32_768,
    steps=500,
)
