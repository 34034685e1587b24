"""Speech 1: pre-training. Encoder and projector are aligned with the frozen language model by transcription, learning
rate 4e-5 for 50k steps (report 2.2.2).

    polyphi train speech_1_pretrain --size nano --out runs/speech_1_pretrain

Expected: the frozen model transcribes speech, and has no other ability with audio (claim C4).
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="speech_1_pretrain",
    start={"*": "text_4_align", "audio.encoder.*": "speech_0_aed"},
    trainable={"audio.encoder.*": 4e-5, "audio.projector.speech.*": 4e-5},
    data=Mix({"asr": 1}),
    objective=NextToken(),
    auxiliary={"align": 0.5},  # [ours]
    context=2048,
    batch_tokens=1 << 20,
    steps=50_000,
    watch=("asr_digits",),
)
