"""Log-mels equal the published formula, written out frame by frame, and those of transformers where it is right.

Both use float64 up to the spectrum, so they agree to float32 rounding of a logarithm near 20 (1e-4).
"""

import math

import numpy as np
import pytest

from polyphi.processing.audio import log_mel, mel_filters

TOLERANCE = 1e-4


def published_filters() -> np.ndarray:
    """[257, 80] one entry at a time."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    spacing = mel(7690) / 81
    filters = np.zeros((257, 80), np.float32)
    for bin in range(1, 246):
        at = mel(bin * 16000 / 512)
        for m in range(80):
            centre = (m + 1) * spacing
            if centre - spacing < at < centre + spacing:
                filters[bin, m] = 1 - abs(centre - at) / spacing
    return filters


def published(wave: np.ndarray, rate: int) -> np.ndarray:
    window, hop, fft = (400, 160, 512) if rate == 16000 else (200, 80, 256)
    rows = []
    for start in range(0, len(wave) - window + 1, hop):
        frame = wave[start : start + window]
        before = np.concatenate([frame[:1], frame[:-1]])
        frame = (frame - np.float32(0.97) * before) * np.float32(32768)
        spectrum = np.fft.rfft(frame * np.hamming(window), fft).astype(np.complex64)
        if rate == 8000:
            spectrum = np.concatenate([spectrum[:128], np.zeros(129, np.complex64)])
        power = np.abs(spectrum).astype(np.float32) ** 2
        rows.append(np.log(np.maximum(power @ published_filters(), 1)))
    return np.array(rows, np.float32)


def speech_like(samples: int, rate: int) -> np.ndarray:
    """A voice-like buzz that swells and fades, with some noise."""
    t = np.arange(samples) / rate
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.1 * buzz * np.sin(3 * t) ** 2 + 0.001 * noise).astype(np.float32)


def test_filters() -> None:
    np.testing.assert_allclose(mel_filters(), published_filters(), atol=1e-6)
    assert (
        mel_filters()[:, 79].argmax() < 246
        and not mel_filters()[246:].any()
        and not mel_filters()[0].any()
    )
    assert mel_filters().any(axis=0).all()


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("samples", [400, 559, 560, 1000, 12345])
def test_the_published_formula(samples: int, rate: int) -> None:
    wave = speech_like(samples, rate)
    expected = published(wave, rate)
    features = log_mel(wave, rate).numpy()
    assert features.shape == expected.shape and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=TOLERANCE)


@pytest.mark.parametrize("samples", [400, 1000, 48000])
def test_transformers_agrees_but_for_the_last_filter(samples: int) -> None:
    """Its filters let FFT bin 246 into filter 79, where the published ones end before it."""
    transformers = pytest.importorskip("transformers")
    wave = speech_like(samples, 16000)
    extractor = transformers.models.phi4_multimodal.Phi4MultimodalFeatureExtractor()
    theirs = extractor(wave, sampling_rate=16000, return_tensors="pt")
    ours = log_mel(wave, 16000)
    assert theirs["audio_embed_sizes"].item() == -(-len(ours) // 8)
    features = theirs["audio_input_features"][0].numpy()
    np.testing.assert_allclose(ours[:, :79], features[:, :79], atol=2e-3)
    np.testing.assert_allclose(ours[:, 79], features[:, 79], atol=0.05)
