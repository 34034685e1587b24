"""Vision 0: the image encoder. SigLIP learns from pictures and captions with the language model's own text
embedding as teacher (LLM2CLIP; report 2.2.1), as text 1 left it, so that this stage can run beside text 2 to 4 [ours].
Beside it each patch of a picture names what lies over it [ours].

    polyphi train vision_0_encoder --size nano --out runs/vision_0_encoder

Aimed at: the contrastive loss falls; a picture's nearest caption in its batch is mostly its own.
"""

from polyphi.train.contrastive import Contrastive
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="vision_0_encoder",
    start={"*": "text_1_pretrain"},
    learn={"vision.encoder.*": 1e-5, "objective.*": 2e-5},
    data=Mix({"captions": 1}),
    objective=Contrastive(naming=1.0),  # [ours] naming
    context=512,
    batch_tokens=1 << 20,
    steps=20_000,
    watch=(),
)
