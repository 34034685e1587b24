"""Vision 0: the image encoder. SigLIP is trained on images and captions with the language model's text embedding as
teacher (LLM2CLIP; report 2.2.1), that of text 1, so that this stage can run in parallel with text 2 to 4 [ours]. A
second loss trains each patch of an image to predict the name of the thing that covers it [ours].

    polyphi train vision_0_encoder --size nano --out runs/vision_0_encoder

Expected: the contrastive loss falls; the nearest caption of an image in its batch is usually its own.
"""

from polyphi.train.contrastive import Contrastive
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_0_encoder",
    start={"*": "text_1_pretrain"},
    trainable={"vision.encoder.*": 1e-5, "objective.*": 2e-5},
    data=Mix({"captions": 1}),
    objective=Contrastive(),
    auxiliary={"naming": 1.0},  # [ours]
    context=512,
    batch_tokens=1 << 20,
    steps=20_000,
    watch=(),
)
