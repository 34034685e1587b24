"""Numbers of frames as published, padding of short audio, resampling of other rates."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.processing import audio
from polyphi.processing.audio import (
    frames,
    log_mel,
    log_mel_of,
    mel_filters,
    resample,
    resampled,
    resampled_length,
)
from polyphi.types.inputs.audio import AudioLayout
from tests.fixtures.variants import few


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, 1), (399, 1), (400, 1), (559, 1), (560, 2), (1000, 4), (16000, 98)],
)
def test_frames_of_a_clip(samples: int, expected: int) -> None:
    assert (
        log_mel(np.zeros(samples, np.float32), 16000).shape == (expected, 80)
        and frames(samples, 16000) == expected
    )
    # Half the samples at half the rate make as many frames.
    assert frames(samples // 2, 8000) == expected


def test_tokens_of_a_clip() -> None:
    assert AudioLayout(frames(16000, 16000), "speech").tokens == 13  # one second
    assert AudioLayout(frames(60 * 16000, 16000), "speech").tokens == 750  # one minute
    assert AudioLayout(351, "speech").tokens == 44


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5000),
    st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]),
)
def test_frames_are_foretold(samples: int, rate: int) -> None:
    wave, target = resample(np.zeros(samples, np.float32), rate)
    assert resampled_length(samples, rate) == (len(wave), target)
    assert len(log_mel(np.zeros(samples, np.float32), rate)) == frames(len(wave), target)


def test_silence_is_exactly_zero_and_padding_a_short_clip_is_silence() -> None:
    assert not log_mel(np.zeros(5000, np.float32), 16000).any()
    wave = np.random.default_rng(0).standard_normal(250).astype(np.float32)
    padded = np.concatenate([wave, np.zeros(150, np.float32)])
    assert log_mel(wave, 16000).equal(log_mel(padded, 16000))


def test_a_clip_gives_what_its_pieces_give() -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal(160 * 4300).astype(
        np.float32
    )  # more than one chunk of frames
    whole = log_mel(wave, 16000)
    piece = log_mel(wave[160 * 4090 : 160 * 4109 + 400], 16000)
    # Not always bit for bit: a processor's matrix product may sum in another order for another number of rows.
    # One unit in the last place of values up to 32 is 1.9e-6.
    torch.testing.assert_close(whole[4090:4110], piece, rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("rate", "target"),
    [(44100, 16000), (48000, 16000), (24000, 16000), (12000, 8000), (11025, 8000)],
)
def test_a_tone_stays_where_it_is_at_other_rates(rate: int, target: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return (0.3 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)

    assert resample(tone(rate), rate)[1] == target
    ours, expected = log_mel(tone(rate), rate), log_mel(tone(target), target)
    assert ours.shape == expected.shape
    loud = expected[10:-10] > 10
    assert (ours - expected)[10:-10][loud].abs().max() < 0.1


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 16000 * 60),
    st.lists(st.integers(1, 200_000), max_size=6),
    st.sampled_from([8000, 16000, 11025, 44100, 32000, 48000, 96000]),
)
def test_a_clip_in_blocks_gives_the_same_bits(samples: int, cuts: list[int], rate: int) -> None:
    """Audio in blocks of any sizes has the same frames as in one piece."""
    wave = 0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    blocks = np.split(wave, sorted({cut % samples for cut in cuts} - {0}))
    whole, target = resample(wave, rate)
    parts, same = resampled(blocks, rate)
    assert same == target and np.array_equal(np.concatenate(list(parts)), whole)
    assert torch.equal(log_mel_of(blocks, rate), log_mel(wave, rate))


def recording(seconds: float, rate: int) -> np.ndarray:
    """Float32 harmonics of 140 Hz that swell and fade, up to 12 kHz, with noise: something on both sides of 8 kHz."""
    t = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 86))
    noise = np.random.default_rng(rate).standard_normal(len(t))
    return (0.1 * buzz * np.sin(3 * t) ** 2 + 0.001 * noise).astype(np.float32)


@pytest.mark.parametrize("rate", few([48000, 32000, 64000, 96000, 192000], 1))
def test_whole_multiples_of_16_khz_are_resampled_as_published(rate: int) -> None:
    """Equal to scipy's float32 result: to the bit on x86-64, elsewhere but for fused multiply-add (a few units in the
    last place of a sample of up to 0.5, hence 2e-7). The published processor may also be given float64 samples: the
    two precisions differ by up to 7e-4 in log-mel energy at 32 to 96 kHz, in single bands far below the loudest."""
    signal = pytest.importorskip("scipy.signal")
    wave, factor = recording(3.0, rate), rate // 16000
    expected = signal.resample_poly(wave, 1, factor)
    result, target = resample(wave, rate)
    assert target == 16000 and result.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-7)
    published = log_mel(expected, 16000)
    streamed = log_mel_of(np.array_split(wave, 17), rate)
    for ours in (log_mel(wave, rate), streamed):
        torch.testing.assert_close(ours, published, rtol=0, atol=1e-4)
    precise = signal.resample_poly(wave.astype(np.float64), 1, factor).astype(np.float32)
    torch.testing.assert_close(streamed, log_mel(precise, 16000), rtol=0, atol=2e-3)


@pytest.mark.parametrize("samples", [1, 2, 3, 59, 60, 61, 62, 1000])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_short_audio_is_resampled_as_published(samples: int, factor: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    expected = signal.resample_poly(wave, 1, factor)
    result, _ = resample(wave, 16000 * factor)
    assert len(result) == len(expected) == -(-samples // factor)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("factor", [2, 3, 6, 48])
def test_the_filter_is_scipys(factor: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    expected = signal.firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0))
    # Computed in float64, rounded once: the last bit may differ where numpy's Bessel function does.
    np.testing.assert_allclose(audio._low_pass(factor), expected, rtol=2e-7, atol=1e-18)


def test_decimation_needs_little_memory() -> None:
    """Two minutes at 48 kHz are 23 MB of samples."""

    def blocks() -> Iterator[np.ndarray]:
        for number in range(120):
            yield np.full(48000, number / 120, np.float32)

    tracemalloc.start()
    try:
        count = sum(len(block) for block in resampled(blocks(), 48000)[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 120 * 16000
    assert peak < 2e6


def test_8_khz_fills_the_lower_half_only() -> None:
    wave = 0.3 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    mel = log_mel(wave, 8000)
    empty = [m for m in range(80) if not mel_filters()[:128, m].any()]
    assert empty and not mel[:, empty].any() and (mel[:, : empty[0] - 1] > 0).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"at least 8000 Hz, found 7999 Hz"):
        log_mel(np.zeros(8000, np.float32), 7999)
    with pytest.raises(ValueError, match=r"n > 0, found \[0\]"):
        log_mel(np.zeros(0, np.float32), 16000)
