"""Vision 1: projector alignment. Only the projector and its separators are trained, on captions (report 2.2.2).

    polyphi train vision_1_align --size nano --out runs/vision_1_align

Expected: captions name the type of image; small text isn't read yet.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_1_align",
    start={"*": "vision_0_encoder", "decoder.*": "text_4_align"},
    trainable={"vision.projector.*": 1e-3},
    data=Mix({"captions": 1}),
    objective=NextToken(),
    auxiliary={"align": 1.0},  # [ours]
    context=4096,
    batch_tokens=1 << 20,
    steps=5_000,
    watch=(),
)
