"""Joint 1: vision-speech. LoRA_V, the vision encoder and its projector are trained on spoken questions about images;
the language model, audio encoder and audio projectors are frozen (report 2.2.2, 3.3).

    polyphi train joint_1_vision_speech --size nano --out runs/joint_1_vision_speech

Expected: spoken questions are answered nearly as well as written ones; the vision scores stay the same.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="joint_1_vision_speech",
    start={
        "*": "speech_2_post",
        "vision.*": "vision_4_multiframe",
        "decoder.*.lora.vision.*": "vision_4_multiframe",
    },
    copy={
        "audio.projector.vision.*": "audio.projector.speech.*"
    },  # [ours] the second projector starts as a copy of the first
    trainable={"decoder.*.lora.vision.*": 5e-5, "vision.*": 1e-5},
    data=Mix(
        {"vision_speech": 52, "image_qa": 22, "multi_image": 16, "captions": 4, "instructions": 6},
        adapter={"instructions": "vision"},
    ),  # [ours]
    objective=NextToken(max_crops=36),
    auxiliary={"align": 0.3},  # [ours]
    context=16_384,
    batch_tokens=1 << 22,
    steps=10_000,
    watch=("spoken_question", "digit", "sharegpt4o"),
)
