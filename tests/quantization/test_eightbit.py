"""Encoders in 8 bits with kernels between the products: the same as without, and close to the whole weights."""

from collections.abc import Iterator

import pytest
import torch

from polyphi import kernels
from polyphi.batch import Clip
from polyphi.model import subsampling
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import eightbit, quantize

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
CLIPS = [Clip(n, "speech") for n in (33, 170, 9, 33)]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(config: ModelConfig) -> PhiModel:
    made = PhiModel(config)
    made.initialise(0)
    for i, (name, p) in enumerate(made.named_parameters()):
        if p.dim() == 1 or name.endswith(("b1", "b2")) or "relative" in name:
            p += 0.2 * noise(*p.shape, seed=i)
    return made.bfloat16().eval()


@pytest.fixture
def whole(tiny_config: ModelConfig) -> PhiModel:
    return model(tiny_config)


@pytest.fixture
def fused(tiny_config: ModelConfig) -> PhiModel:
    return quantize.quantize(model(tiny_config), "int8-all")


def heard(model: PhiModel, clips: list[Clip] = CLIPS) -> torch.Tensor:
    mels = 4 * noise(sum(c.frames for c in CLIPS), 80).bfloat16()
    first = sum(c.frames for c in CLIPS[: CLIPS.index(clips[0])])
    mels = mels[first : first + sum(c.frames for c in clips)]
    return model.audio.encoder(mels, clips)


def seen(model: PhiModel, crops: slice = slice(None)) -> torch.Tensor:
    """Of a whole crop, one whose last column of cells is half empty, one that is mostly empty; only what is read."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0], masks[1, :, :3], masks[2, :2, :2] = True, True, True
    pixels = noise(3, 3, 56, 56).bfloat16()
    read = torch.ones(3, 4, 4, dtype=torch.bool)
    read[2] = masks[2]
    found = model.vision.encoder(pixels[crops], masks[crops])
    return found[read[crops].flatten(1)]


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("encode", [heard, seen])
def test_features_are_close_to_those_of_whole_weights(whole, fused, encode) -> None:
    assert any(isinstance(m, eightbit.AudioBlock) for m in fused.modules())
    assert any(isinstance(m, eightbit.VisionLayer) for m in fused.modules())
    # 8 bits of every activation; a third of it with bfloat16 alone
    assert off(encode(fused), encode(whole)) < 0.04


@pytest.mark.parametrize("encode", [heard, seen])
def test_kernels_compute_what_plain_modules_do(tiny_config, fused, encode, monkeypatch) -> None:
    monkeypatch.setattr(quantize.eightbit, "fuse", lambda *_: None)
    plain = quantize.quantize(model(tiny_config), "int8-all")
    assert not any(isinstance(m, eightbit.VisionLayer) for m in plain.modules())
    assert off(encode(fused), encode(plain)) < 0.04


@pytest.mark.parametrize("clip", CLIPS[:3])
def test_a_clip_gives_what_it_gives_alone(fused, clip) -> None:
    parts = heard(fused).split([c.tokens for c in CLIPS])
    assert torch.equal(heard(fused, [clip]), parts[CLIPS.index(clip)])


@pytest.mark.parametrize("features", [1, 5])
def test_parts_of_a_clip_are_heard_as_the_whole_is(fused, features, monkeypatch) -> None:
    whole = heard(fused)
    monkeypatch.setattr(subsampling, "BATCH_FEATURES", features)
    assert torch.equal(heard(fused), whole)


def test_a_crop_gives_what_it_gives_alone(fused) -> None:
    sizes = [16, 16, 4]
    for i, part in enumerate(seen(fused).split(sizes)):
        assert torch.equal(seen(fused, slice(i, i + 1)), part)


def test_with_gradients_plain_modules_answer(fused) -> None:
    """Kernels know none; nothing is asked of them."""
    with torch.enable_grad():
        mels = 4 * noise(33, 80).bfloat16()
        found = fused.audio.encoder(mels, [Clip(33, "speech")])
    assert off(found.detach(), fused.audio.encoder(mels, [Clip(33, "speech")])) < 0.04
