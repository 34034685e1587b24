"""Rules of the Conformer; its numbers are compared with transformers and plain formulas in tests/core/parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi import kernels
from polyphi.batch import AudioLayout
from polyphi.model.config import AudioConfig
from polyphi.model.conformer import (
    BATCH_FEATURES,
    CausalDepthwise,
    ConformerEncoder,
    Windows,
)
from polyphi.model.multimodal import PhiModel
from polyphi.model.subsampling import _from_one_channel


@pytest.fixture
def encoder(tiny_config) -> ConformerEncoder:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    return model.audio.encoder.eval()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_windows_cover_every_frame_once_with_little_padding(lengths):
    windows = Windows.of(lengths, torch.device("cpu"))
    frames = torch.cat([group.gather for group in windows.groups])
    assert torch.equal(frames[windows.index], torch.arange(sum(lengths)))
    assert windows.age.tolist() == [t for n in lengths for t in range(n)]
    assert sum(group.windows for group in windows.groups) == len(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for group in windows.groups:
        table = group.gather.view(group.windows, group.longest)
        is_frame = (
            torch.ones_like(table, dtype=torch.bool)
            if group.visible is None
            else group.visible[:, 0, 0]
        )
        counts = is_frame.sum(1)
        assert counts.max() == group.longest <= max(counts.min() + 8, counts.min() * 5 // 4)
        for line, mask in zip(table, is_frame, strict=True):
            assert len(set(owner[line[mask].tolist()])) == 1  # the frames of one window only


@torch.no_grad()
def test_windows_of_a_long_clip_are_independent(encoder):
    mels = torch.randn(4400, 80)
    clip = [AudioLayout(4400, "speech")]
    before = encoder(mels, clip)
    mels[4100:] = 5  # after the last frame that feature 499 depends on
    after = encoder(mels, clip)
    assert torch.equal(before[:500], after[:500])
    assert not torch.equal(before[500:], after[500:])


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


def test_memory_is_that_of_one_part(encoder, monkeypatch):
    """The inputs of the convolutions and the blocks don't grow with the clip."""
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
    with torch.inference_mode():
        for minutes in (3, 5):
            clip = AudioLayout(6000 * minutes, "speech")
            encoder(torch.randn(clip.frames, 80), [clip])
            assert seen == {"frames": 8 * (BATCH_FEATURES + 1), "features": BATCH_FEATURES}


@torch.no_grad()
def test_a_loud_neighbour_has_no_effect(encoder):
    quiet, clips = (
        torch.randn(33, 80),
        [AudioLayout(33, "speech"), AudioLayout(21, "speech"), AudioLayout(33, "speech")],
    )
    features = [
        encoder(torch.cat([quiet, loud, quiet]), clips)
        for loud in (torch.zeros(21, 80), torch.full((21, 80), 1e4))
    ]
    assert torch.equal(features[0][:5], features[1][:5])
    assert torch.equal(features[0][8:], features[1][8:])


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


def test_depthwise_is_causal_within_its_window():
    conv = CausalDepthwise(1, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[100.0, 10.0, 1.0]]]))
    x = torch.tensor([1.0, 2, 3, 4, 5])[:, None]
    age = torch.tensor([0, 1, 2, 0, 1])  # two windows: 1 2 3 | 4 5
    assert conv(x, age).flatten().tolist() == [1, 12, 123, 4, 45]
    assert conv(x[:1], age[:1]).flatten().tolist() == [1]


def test_relative_distances_have_gradients(encoder):
    encoder(
        torch.randn(100, 80), [AudioLayout(60, "speech"), AudioLayout(40, "speech")]
    ).square().sum().backward()
    used = encoder.relative_attention_bias.weight.grad.abs().sum(1).nonzero().flatten()
    assert (used.min(), used.max()) == (500 - 7, 500 + 7)  # eight features: distances -7 to 7


def test_frames_that_do_not_add_up(encoder):
    with pytest.raises(ValueError, match="need 90 log-mel frames, the batch has 100"):
        encoder(torch.zeros(100, 80), [AudioLayout(90, "speech")])
    with pytest.raises(ValueError, match="at least 25 ms"):
        encoder(torch.zeros(8, 80), [AudioLayout(8, "speech"), AudioLayout(0, "speech")])


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="time_reduction must be 8"):
        ConformerEncoder(replace(AudioConfig(), time_reduction=4))


@pytest.mark.parametrize("size", [(8, 80), (16, 5), (24, 6)])
def test_the_first_convolution_is_a_matrix_product(size: tuple[int, int]) -> None:
    conv = torch.nn.Conv2d(1, 6, kernel_size=3, stride=2, padding=1)
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    result, expected = _from_one_channel(x, conv), conv(x[None, None])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
