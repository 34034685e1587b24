"""Speech 0: the audio encoder. An attention encoder-decoder learns to recognise; its decoder is thrown away (report
2.2.2). A CTC loss beside it steadies the start [ours].

    polyphi train speech_0_aed --size nano --out runs/speech_0_aed

Aimed at: a plateau, then a fast fall; the whole recogniser is kept aside for the WER filter.
"""

from polyphi.train.aed import AttentionDecoder
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="speech_0_aed",
    start={"*": "text_4_align"},
    learn={"audio.encoder.*": 1e-3, "objective.*": 1e-3},
    data=Mix({"asr": 1}),
    objective=AttentionDecoder(),
    context=2048,
    batch_tokens=1 << 16,
    steps=200_000,
    watch=(),
)
