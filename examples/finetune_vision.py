"""Vision only: the published model learns to answer about your kind of pictures.

    polyphi train examples/finetune_vision.py --data receipts.jsonl --out runs/receipts
    polyphi chat runs/receipts/model --image receipt.jpg "What is the total?"

A line of receipts.jsonl: {"image": "receipt.jpg", "question": "What is the total?", "answer": "12.40"}.

Expect: the loss falls within the first hundred steps; 1,000 questions are a good start, 50 only show that it works.
The language model, speech and their answers stay what they were, bit for bit (runs/receipts/manifest.json proves it).
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="receipts",
    start={"*": "hf:microsoft/Phi-4-multimodal-instruct"},  # --model takes its place
    # half the rates of the report's last vision stage [ours]; the encoder rests
    trainable={"decoder.*.lora.vision.*": 5e-5, "vision.projector.*": 1e-5},
    data=Mix({"receipts": 1}),
    objective=NextToken(max_crops=16),  # a crop is 448 pixels square and about 256 tokens
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=8192,
    batch_tokens=32_768,
    steps=500,
)
