"""A tiny random model, its tokenizer, and conversations with images and audio."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PIL

from polyphi.checkpoints.processor import make_processor
from polyphi.engine.engine import Engine
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image

SAYINGS = [
    "the quick brown fox jumps over the lazy dog",
    "größer als ein Haus",
    "図書館で本を読む",
    "1 + 2 = 3",
    "<sep> yes no",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAYINGS, vocab_size=384)


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    """Weights are large enough for answers of varied tokens."""
    return make_engine(fitted(tiny_config, tokenizer), tokenizer)


def fitted(config: ModelConfig, tokenizer: Tokenizer, **decoder: int) -> ModelConfig:
    """A model's configuration with a tokenizer's ids, images of at most four crops, and other values of the decoder."""
    assert config.vision and config.audio
    ids = {"vocab_size": tokenizer.vocab_size, "eos_token_ids": tokenizer.eos_ids}
    return replace(
        config,
        decoder=replace(config.decoder, **{**ids, **decoder}),
        vision=replace(config.vision, image_token_id=tokenizer.image_id, max_crops=4),
        audio=replace(config.audio, audio_token_id=tokenizer.audio_id),
    )


def make_engine(config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    import torch

    model = PhiModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_(centre + 0.15 * torch.randn(tensor.shape, generator=generator))
        # Control tokens are never the likeliest: answers end at max_tokens unless a test changes that.
        ids = list(tokenizer.controls.values())
        model.decoder.embed_tokens.weight[ids] *= 0.01
    return Engine(model, make_processor(config, tokenizer))


def picture(width: int = 70, height: int = 50) -> Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.fromarray(pixels).save(file, "PNG")
    return Image(file.getvalue())


def clip(seconds: float = 0.5) -> Audio:
    wave = np.random.default_rng(1).normal(0, 0.1, int(16000 * seconds)).astype(np.float32)
    return Audio((wave, 16000))


@pytest.fixture
def conversations() -> list[list[Message]]:
    """Text, image, audio, both, and a longer one: every adapter in one group."""
    return [
        [Message.user("the quick fox")],
        [Message.user(picture(), "what is this?")],
        [Message.user(clip(), "say it")],
        [Message.user(picture(50, 50), clip(0.3))],
        [
            Message.system("be brief"),
            Message.user("1 + 2"),
            Message.assistant("3"),
            Message.user("and then?"),
        ],
    ]
