"""Speech 0: the audio encoder. An attention encoder-decoder is trained for speech recognition; its decoder is an
auxiliary head (report 2.2.2). An additional CTC loss stabilises the first steps [ours].

    polyphi train speech_0_aed --size nano --out runs/speech_0_aed

Expected: the loss has a plateau, then falls fast. The recognizer with its decoder is kept for the WER filter.
"""

from polyphi.train.aed import AttentionDecoder
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="speech_0_aed",
    start={},  # it needs no language model
    trainable={"audio.encoder.*": 5e-4, "objective.*": 5e-4},
    data=Mix({"asr": 1}, curriculum=("asr",)),
    objective=AttentionDecoder(),
    schedule=Schedule(decay="linear", decay_share=0.5),
    context=2048,
    batch_tokens=1 << 16,
    steps=200_000,
    watch=(),
)
