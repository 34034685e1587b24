"""Speech only: the published model learns your voices, words or language.

    polyphi train examples/finetune_speech.py --data calls.jsonl --out runs/calls
    polyphi transcribe runs/calls/model call.wav

A line of calls.jsonl: {"audio": "call.wav", "answer": "Hello, how can I help?"}. Without a question it is transcribed.

Expect: the loss falls within the first hundred steps; 1,000 clips are a good start, 50 only show that it works. The
language model, vision and their answers stay what they were, bit for bit (runs/calls/manifest.json proves it).
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="calls",
    start={"*": "hf:microsoft/Phi-4-multimodal-instruct"},  # --model takes its place
    # as in the report's speech post-training (2.2.2); add "audio.encoder.*": 1e-5 for voices far from it
    trainable={"audio.projector.speech.*": 1e-4, "decoder.*.lora.speech.*": 1e-4},
    data=Mix({"calls": 1}),
    objective=NextToken(),
    schedule=Schedule(warmup=0.05, decay="linear"),
    context=4096,  # tokens; a second of speech has 12.5, longer rows are left out and counted
    batch_tokens=16_384,
    steps=500,
)
