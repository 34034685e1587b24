"""Rules of the Conformer; its numbers are compared with transformers and plain formulas in tests/core/parity."""

from dataclasses import replace

import pytest
import torch

from polyphi.model.config import AudioConfig
from polyphi.model.conformer import CausalDepthwise, ConformerEncoder
from polyphi.model.multimodal import PhiModel
from polyphi.types.inputs.audio import AudioLayout


@pytest.fixture
def encoder(tiny_config) -> ConformerEncoder:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    return model.audio.encoder.eval()


def test_windows_know_the_frames_before_each(encoder):
    """Padded keys are masked, and the frames of a window are in order."""
    lengths = [3, 40, 9]
    windows = encoder.windows(lengths, torch.zeros(52, 32))
    assert windows.age.tolist() == [t for n in lengths for t in range(n)]
    assert [(g.windows, g.longest) for g in windows.groups] == [(2, 9), (1, 40)]
    masked = windows.groups[0].bias.isinf()
    assert masked[0, 0].sum(1).tolist() == [6] * 9 and not masked[1].any()
    assert not windows.groups[1].bias.isinf().any()


@torch.no_grad()
def test_windows_of_a_long_clip_are_independent(encoder):
    mels = torch.randn(4400, 80)
    clip = [AudioLayout(4400, "speech")]
    before = encoder(mels, clip)
    mels[4100:] = 5  # after the last frame that feature 499 depends on
    after = encoder(mels, clip)
    assert torch.equal(before[:500], after[:500])
    assert not torch.equal(before[500:], after[500:])


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
    with pytest.raises(ValueError, match=r"90 .*100"):
        encoder(torch.zeros(100, 80), [AudioLayout(90, "speech")])
    with pytest.raises(ValueError, match="at least 25 ms"):
        encoder(torch.zeros(8, 80), [AudioLayout(8, "speech"), AudioLayout(0, "speech")])


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match=r"time_reduction .*8"):
        ConformerEncoder(replace(AudioConfig(), time_reduction=4))
