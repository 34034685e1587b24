"""Vision 4: multi-frame training. The encoder is frozen; LoRA_V and the projector [ours: projector] are trained on
several images and frames, context 64k (report 2.2.2).

    polyphi train vision_4_multiframe --size nano --out runs/vision_4_multiframe

Expected: images are compared and motion is described; the scores on single images stay the same.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_4_multiframe",
    start={"*": "vision_3_generative"},
    trainable={"decoder.*.lora.vision.*": 5e-5, "vision.projector.*": 2e-5},
    data=Mix(
        {"multi_image": 56, "image_qa": 36, "instructions": 8}, adapter={"instructions": "vision"}
    ),  # [ours] shares
    objective=NextToken(max_crops=36),
    auxiliary={"align": 0.3},  # [ours]
    context=65_536,
    batch_tokens=1 << 22,
    steps=10_000,
    watch=("which_picture", "motion"),
)
