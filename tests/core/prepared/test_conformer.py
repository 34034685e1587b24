"""The prepared Conformer equals the plain one, in parts and packed, in float32 and bfloat16."""

import copy
from dataclasses import replace

import pytest
import torch

from polyphi import kernels
from polyphi.kernels import bf16
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.multimodal import PhiModel
from polyphi.prepared import multimodal
from polyphi.prepared.conformer import BATCH_FEATURES
from polyphi.prepared.prepare import prepare
from polyphi.prepared.subsampling import _from_one_channel
from polyphi.types.inputs.audio import AudioInput, AudioLayout


@pytest.fixture
def plain(tiny_config) -> ConformerEncoder:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    return model.audio.encoder.eval()


@pytest.fixture
def encoder(plain) -> ConformerEncoder:
    return prepare(copy.deepcopy(plain))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("needed", [False, True])
def test_the_convolutions_equal_the_plain_ones(
    plain, encoder, monkeypatch, grad, autocast, dtype, bound, needed
):
    """Also as on a CPU without bfloat16 instructions (`needed`). Measured in the 2-norm, here and on a CPU with AVX2:
    0.0067 under autocast, which only the plain convolutions heed; 0.0052 for our kernels; otherwise equal."""
    monkeypatch.setattr(bf16, "needed", lambda: needed)
    mels = torch.randn(70, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain, encoder = plain.to(dtype), encoder.to(dtype)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, result = (e.subsampling(mels, [33, 9, 28]).float() for e in (plain, encoder))
    bound = 0.01 if autocast else bound
    assert (result - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize(
    "frames",
    [
        [33, 8001, 21],  # one feature more than what is encoded at a time
        [8000 + 4000 + 77],  # three windows and a bit: the last is padded, as always
        [7999, 16, 7985, 9],
        [900] * 20,  # many short ones
    ],
)
def test_encoding_in_parts_equals_one_pass(encoder, frames):
    """Without gradients clips are encoded in parts, with the result of one pass."""
    clips = [AudioLayout(n, "speech") for n in frames]
    mels = 16 + 4 * torch.randn(sum(frames), 80)
    whole = encoder(mels, clips)
    assert whole.requires_grad and len(whole) == sum(clip.tokens for clip in clips)
    with torch.inference_mode():
        pieces = encoder(mels, clips)
    # Sums of other lengths may be added up in another order: units in the last place of values around 1, up to 1.6e-5
    # as processors differ.
    torch.testing.assert_close(pieces, whole.detach(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_is_that_of_one_part(encoder, monkeypatch, frozen):
    """The inputs of the convolutions and the blocks don't grow with the clip: in inference, and in training where the
    encoder is frozen."""
    seen = {"frames": 0, "features": 0}
    subsample, encode = encoder._subsample, encoder._encode

    def subsampling(x, spans):
        seen["frames"] = max(seen["frames"], sum(span.frames for span in spans))
        return subsample(x, spans)

    def encoding(x, lengths):
        seen["features"] = max(seen["features"], len(x))
        return encode(x, lengths)

    monkeypatch.setattr(encoder, "_subsample", subsampling)
    monkeypatch.setattr(encoder, "_encode", encoding)
    encoder.requires_grad_(not frozen)
    with torch.enable_grad() if frozen else torch.inference_mode():
        for minutes in (3, 5):
            clip = AudioLayout(6000 * minutes, "speech")
            encoder(torch.randn(clip.frames, 80), [clip])
            assert seen == {"frames": 8 * (BATCH_FEATURES + 1), "features": BATCH_FEATURES}


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_our_attention_equals_torchs(encoder):
    """With gradients torch's kernel is used, windows padded to similar length; without them ours, window by window."""
    with torch.no_grad():
        bias = encoder.relative_attention_bias.weight
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
    encoder, clips = encoder.bfloat16(), [AudioLayout(n, "speech") for n in (33, 4100, 9, 40)]
    mels = torch.randn(4182, 80, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = encoder(mels, clips).detach().float()
    with torch.no_grad():
        result = encoder(mels, clips).float()
    assert (result - plain).norm() < 0.015 * plain.norm()


@pytest.mark.parametrize("size", [(8, 80), (16, 5), (24, 6)])
def test_the_first_convolution_is_a_matrix_product(size: tuple[int, int]) -> None:
    conv = torch.nn.Conv2d(1, 6, kernel_size=3, stride=2, padding=1)
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    result, expected = _from_one_channel(x, conv), conv(x[None, None])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_a_long_clip_has_the_features_of_its_pieces(encoder):
    """A window (40 s at the published size) attends only to itself: just the first one of a piece differs, because the
    convolutions read frames before it."""
    window = 50
    encoder.config = replace(encoder.config, window=window)
    mels = torch.randn(8 * window * 4, 80, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = encoder(mels, [AudioLayout(len(mels), "speech")])
        for first, last in ((0, 2), (1, 3)):
            piece = mels[8 * window * first : 8 * window * last]
            features = encoder(piece, [AudioLayout(len(piece), "speech")])
            start = 0 if first == 0 else window
            expected = whole[first * window + start : last * window]
            torch.testing.assert_close(features[start:], expected, rtol=0, atol=5e-5)
            assert first == 0 or not torch.allclose(features[:8], whole[first * window :][:8])


def test_a_long_clip_is_projected_in_parts(tiny_config, monkeypatch):
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    audio, sizes = prepare(model).eval().audio, list[int]()
    clip = AudioInput(layouts=(AudioLayout(1000, "vision"),), mels=torch.randn(1000, 80))
    with torch.inference_mode():
        whole = audio(clip)
        monkeypatch.setattr(multimodal, "PROJECTED_FEATURES", 50)
        audio.projector.vision.up.register_forward_hook(lambda _, x, y: sizes.append(len(y)))
        torch.testing.assert_close(audio(clip), whole, rtol=0, atol=1e-5)
    assert sizes == [50, 50, 25]
