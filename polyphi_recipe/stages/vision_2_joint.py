"""Vision 2: joint vision training. Projector and encoder are trained on the whole vision pre-training set: interleaved
documents, pairs, grounding, OCR, charts; at most 16 crops (report 2.2.2, 3.2).

    polyphi train vision_2_joint --size nano --out runs/vision_2_joint

Expected: the frozen language model reads short words and numbers and counts a few things.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_2_joint",
    start={"*": "vision_1_align"},
    trainable={"vision.*": 1e-4},
    data=Mix(
        {"captions": 55, "interleaved": 4, "grounding": 8, "ocr": 25, "charts": 8}
    ),  # [ours] shares
    small=Mix({"captions": 72, "interleaved": 3, "grounding": 8, "ocr": 10, "charts": 7}),
    objective=NextToken(max_crops=16),
    auxiliary={"align": 1.0},  # [ours]
    context=8192,
    batch_tokens=1 << 22,
    steps=120_000,  # 0.5T tokens with text (report 3.2)
    watch=(),
)
