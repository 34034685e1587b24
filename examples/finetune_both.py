"""Both at once: pictures, clips, and spoken questions about pictures, in one run.

    polyphi train examples/finetune_both.py --data receipts.jsonl --data calls.jsonl --out runs/desk
    polyphi chat runs/desk/model --image receipt.jpg --audio question.wav

Each row goes by the adapter that its media call for: a picture by vision, clips alone by speech. A row with both, such
as {"image": "receipt.jpg", "audio": "question.wav", "answer": "12.40"}, goes by vision.

Expect: one loss that falls for both; text-only answers stay what they were, bit for bit.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="desk",
    start={"*": "hf:microsoft/Phi-4-multimodal-instruct"},  # --model takes its place
    trainable={
        "decoder.*.lora.vision.*": 5e-5,
        "vision.projector.*": 1e-5,
        "decoder.*.lora.speech.*": 1e-4,
        "audio.projector.speech.*": 1e-4,
    },
    # every row once, then again; Mix({"receipts": 1, "calls": 1}) draws as many samples of the one as of the other
    data=Mix({"desk": 1}),
    objective=NextToken(max_crops=16),
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=8192,
    batch_tokens=32_768,
    steps=1000,
)
