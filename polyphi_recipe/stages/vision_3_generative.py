"""Vision 3: generative vision-language training. LoRA_V, the encoder and the projector are trained on
single-image instructions; at most 36 crops (report 2.2.2, 3.2).

    polyphi train vision_3_generative --size nano --out runs/vision_3_generative

Expected: questions about one image are answered; text rows train the adapter too, so that it keeps the text abilities.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_3_generative",
    start={"*": "vision_2_joint"},
    # [ours] learning rates: that of the fresh adapter is five times that of the encoder
    trainable={"decoder.*.lora.vision.*": 1e-4, "vision.*": 2e-5},
    data=Mix(
        {"image_qa": 87, "ocr": 5, "instructions": 8}, adapter={"instructions": "vision"}
    ),  # [ours] shares
    small=Mix(
        {"image_qa": 88, "charts": 3, "grounding": 2, "ocr": 1, "instructions": 6},
        adapter={"instructions": "vision"},
    ),
    objective=NextToken(max_crops=36),
    auxiliary={"align": 0.3},  # [ours]
    context=16_384,
    batch_tokens=1 << 22,
    steps=70_000,  # 0.3T tokens over text (report 3.2)
    watch=("digit", "count", "chartqa"),
)
