"""Int8 encoders with fused kernels: equal to plain modules, and close to unquantized weights."""

from collections.abc import Iterator

import pytest
import torch

from polyphi import kernels
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared import subsampling
from polyphi.quantization import int8_encoder, quantize
from polyphi.types.inputs.audio import AudioLayout
from tests.fixtures.tensors import noise

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
CLIPS = [AudioLayout(n, "speech") for n in (33, 170, 9, 33)]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def model(config: ModelConfig) -> PhiModel:
    result = PhiModel(config)
    result.initialise(0)
    for i, (name, p) in enumerate(result.named_parameters()):
        if p.dim() == 1 or name.endswith(("b1", "b2")) or "relative" in name:
            p += 0.2 * noise(*p.shape, seed=i)
    return result.bfloat16().eval()


@pytest.fixture
def whole(tiny_config: ModelConfig) -> PhiModel:
    return model(tiny_config)


@pytest.fixture
def fused(tiny_config: ModelConfig) -> PhiModel:
    return quantize.quantize(model(tiny_config), "int8-all")


def audio_features(model: PhiModel, clips: list[AudioLayout] = CLIPS) -> torch.Tensor:
    mels = 4 * noise(sum(c.frames for c in CLIPS), 80).bfloat16()
    first = sum(c.frames for c in CLIPS[: CLIPS.index(clips[0])])
    mels = mels[first : first + sum(c.frames for c in clips)]
    return model.audio.encoder(mels, clips)


def image_features(model: PhiModel, crops: slice = slice(None)) -> torch.Tensor:
    """Features of a full crop, one whose last column of cells is half empty, and one that is mostly empty; only the
    patches that are used."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0], masks[1, :, :3], masks[2, :2, :2] = True, True, True
    pixels = noise(3, 3, 56, 56).bfloat16()
    used = torch.ones(3, 4, 4, dtype=torch.bool)
    used[2] = masks[2]
    features = model.vision.encoder(pixels[crops], masks[crops])
    return features[used[crops].flatten(1)]


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("encode", [audio_features, image_features])
def test_features_are_close_to_those_of_whole_weights(whole, fused, encode) -> None:
    assert any(isinstance(m, int8_encoder.AudioBlock) for m in fused.modules())
    assert any(isinstance(m, int8_encoder.VisionLayer) for m in fused.modules())
    # Activations in int8; bfloat16 alone has a third of this error.
    assert error(encode(fused), encode(whole)) < 0.04


@pytest.mark.parametrize("encode", [audio_features, image_features])
def test_kernels_equal_plain_modules(tiny_config, fused, encode, monkeypatch) -> None:
    monkeypatch.setattr(quantize.int8_encoder, "fuse", lambda *_: None)
    plain = quantize.quantize(model(tiny_config), "int8-all")
    assert not any(isinstance(m, int8_encoder.VisionLayer) for m in plain.modules())
    assert error(encode(fused), encode(plain)) < 0.04


@pytest.mark.parametrize("clip", CLIPS[:3])
def test_a_clip_is_encoded_as_alone(fused, clip) -> None:
    parts = audio_features(fused).split([c.tokens for c in CLIPS])
    assert torch.equal(audio_features(fused, [clip]), parts[CLIPS.index(clip)])


@pytest.mark.parametrize("features", [1, 5])
def test_a_clip_in_parts_is_encoded_as_the_whole(fused, features, monkeypatch) -> None:
    whole = audio_features(fused)
    monkeypatch.setattr(subsampling, "BATCH_FEATURES", features)
    assert torch.equal(audio_features(fused), whole)


def test_a_crop_is_encoded_as_alone(fused) -> None:
    sizes = [16, 16, 4]
    for i, part in enumerate(image_features(fused).split(sizes)):
        assert torch.equal(image_features(fused, slice(i, i + 1)), part)


def test_with_gradients_plain_modules_run(fused) -> None:
    """The kernels have no backward."""
    with torch.enable_grad():
        mels = 4 * noise(33, 80).bfloat16()
        features = fused.audio.encoder(mels, [AudioLayout(33, "speech")])
    assert error(features.detach(), fused.audio.encoder(mels, [AudioLayout(33, "speech")])) < 0.04
