"""A tiny model of random weights, plain and prepared, and packs with every modality and adapter."""

import copy
from collections.abc import Callable

import pytest
import torch

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.types.batch import Batch, pack, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput, ImageLayout
from tests.fixtures.tensors import noise

Pair = tuple[PhiModel, PhiModel]


@pytest.fixture
def pair(tiny_config: ModelConfig) -> Callable[[torch.dtype], Pair]:
    """(plain, prepared) in a dtype, in eval mode."""

    def make(dtype: torch.dtype) -> Pair:
        model = PhiModel(tiny_config).eval()
        with torch.no_grad():
            for seed, (name, p) in enumerate(model.named_parameters()):
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                p.copy_(centre + 0.1 * noise(*p.shape, seed=seed))
        model = model.to(dtype)
        return model, prepare(copy.deepcopy(model))

    return make


def image_row() -> Batch:
    """Two crops and the global view of an image, the last column of cells padding."""
    layout, masks = ImageLayout(1, 2, 2, 3), torch.ones(3, 4, 4, dtype=torch.bool)
    masks[2, :, 2:] = False
    tokens = layout.tokens(2)
    return row(
        [5, *[10] * tokens, 6, 7],
        ImageInput(
            layouts=(layout,),
            slots=torch.arange(1, 1 + tokens),
            crops=noise(3, 3, 56, 56, seed=1),
            masks=masks,
        ),
        adapter="vision",
    )


def audio_row(frames: int = 60) -> Batch:
    clip = AudioLayout(frames, "speech")
    return row(
        [5, *[11] * clip.tokens, 6],
        AudioInput(
            layouts=(clip,),
            slots=torch.arange(1, 1 + clip.tokens),
            mels=4 * noise(frames, 80, seed=2),
        ),
        adapter="speech",
    )


@pytest.fixture
def packs() -> dict[str, Batch]:
    """Packs of one and of several sequences, some longer than LongRoPE's switch and than explicit attention."""
    long = row([20 + i % 900 for i in range(300)])
    return {
        "text": row(range(20, 60)),
        "one token": row([20], adapter="vision"),
        "speech": pack([audio_row(), audio_row(25)]),
        "mixed": pack([image_row(), row([20, 21, 22]), audio_row(), long, image_row()]),
        "long": pack([long, long]),
    }
