"""Audio arrays: resampling to 16 kHz, encoding, trimming of silence, joining, levels, and augmentation by another
voice, room and line."""

import io
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

RATE = 16_000  # Hz: every clip in the shards

Wave = Float[np.ndarray, " n"]


def encode(wave: Wave) -> bytes:
    """Return a clip at 16 kHz as FLAC with 16 bits, clipped to [-1, 1]."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(wave, -1.0, 32767 / 32768), RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def resample(wave: Wave, rate: int) -> Wave:
    """Return the clip at 16 kHz, from any rate."""
    return wave if rate == RATE else soxr.resample(wave, rate, RATE, quality="HQ")


def trim(wave: Wave, rate: int = RATE, keep: float = 0.06) -> Wave:
    """Cut the silence at both ends except for `keep` seconds. Silent are 10 ms blocks 40 dB below the loudest."""
    block = max(1, rate // 100)
    count = len(wave) // block
    if count < 2:
        return wave
    energy = np.square(wave[: count * block].reshape(count, block)).mean(axis=1)
    loud = np.flatnonzero(energy > 1e-4 * energy.max())
    if len(loud) == 0:
        return wave
    margin = int(keep * rate)
    return wave[max(0, loud[0] * block - margin) : (loud[-1] + 1) * block + margin]


def join(waves: Sequence[Wave], pauses: Sequence[float]) -> Wave:
    """Concatenate clips with `pauses` seconds between them (one pause fewer than clips); with a negative pause two
    clips overlap, so that words run into each other as in speech."""
    assert len(pauses) == len(waves) - 1, (
        f"{len(waves)} clips need {len(waves) - 1} pauses, found {len(pauses)}"
    )
    starts, end = [0], len(waves[0])
    for wave, pause in zip(waves[1:], pauses, strict=True):
        starts.append(max(starts[-1], end + int(pause * RATE)))
        end = starts[-1] + len(wave)
    out = np.zeros(max(s + len(w) for s, w in zip(starts, waves, strict=True)), np.float32)
    for start, wave in zip(starts, waves, strict=True):
        out[start : start + len(wave)] += wave
    return out


def in_silence(wave: Wave, before: float, after: float, rate: int = RATE) -> Wave:
    """Pad the clip with silence of `before` and `after` seconds."""
    return np.pad(wave, (int(before * rate), int(after * rate)))


def level(wave: Wave, decibels: float) -> Wave:
    """Scale the clip so that its peak is `decibels` dB below full scale."""
    return wave * np.float32(10 ** (-decibels / 20) / max(1e-6, float(np.abs(wave).max())))


@cache
def _smooth_lengths() -> list[int]:
    """Return the numbers with no prime factor above 5: lengths with fast Fourier transforms."""
    powers = [2**a * 3**b * 5**c for a in range(21) for b in range(13) for c in range(9)]
    return sorted(n for n in powers if n <= 1 << 20)


def _fast_length(length: float) -> int:
    sizes = _smooth_lengths()
    return (
        sizes[min(bisect_left(sizes, length), len(sizes) - 1)]
        if length <= sizes[-1]
        else int(length)
    )


def augment(wave: Wave, rate: int, rng: np.random.Generator, strength: float = 1.0) -> Wave:
    """Return the clip at 16 kHz as if from another voice, room, line and microphone.

    One pass through the spectrum: resampling moves pitch, formants and tempo together (up to 14 %), a random smooth
    curve colours it, one clip in four becomes telephone-like, one in four gets an echoing tail, half of them get noise
    (10 to 40 dB below the speech), and the level is random. `strength` scales all of it, the telephone's share only
    below one half; 0 only resamples.
    """
    stretch = 2.0 ** (strength * rng.uniform(-0.19, 0.19))
    echo = rng.random() < 0.25 * strength
    tail = int(0.2 * rate) if echo else 0
    n_in = _fast_length(len(wave) + tail)
    n_out = _fast_length(n_in * RATE / rate * stretch)
    spectrum = np.zeros(n_out // 2 + 1, np.complex64)
    source = np.fft.rfft(wave, n_in).astype(np.complex64)
    shared = min(len(source), len(spectrum))
    spectrum[:shared] = source[:shared]
    hertz = np.arange(len(spectrum), dtype=np.float32) * np.float32(RATE / n_out)
    points = np.array([0, 150, 400, 800, 1500, 2500, 4000, 6000, 8000], np.float32)
    curve = strength * (
        rng.uniform(-6, 6, len(points)) + rng.uniform(-1, 1) * np.linspace(-6, 6, len(points))
    )
    if rng.random() < min(0.25, strength / 2):  # a telephone
        low, high = rng.uniform(150, 350), rng.uniform(3200, 4200)
        curve = curve - 40.0 * ((points < low) | (points > high))
    spectrum *= np.power(np.float32(10), np.interp(hertz, points, curve).astype(np.float32) / 20)
    if echo:
        length = int(rng.uniform(0.08, 0.2) * RATE)
        impulse = rng.standard_normal(length).astype(np.float32) * np.exp(
            -np.linspace(0, 6, length, dtype=np.float32)
        )
        impulse *= np.float32(rng.uniform(0.2, 0.6) / np.sqrt(np.square(impulse).sum()))
        impulse[0] += 1.0
        spectrum *= np.fft.rfft(impulse, n_out).astype(np.complex64)
    out = np.fft.irfft(spectrum, n_out).astype(np.float32)[: int((len(wave) + tail) * n_out / n_in)]
    out = level(out, 1.0)
    if rng.random() < 0.5 * strength:
        noise = rng.standard_normal(len(out), np.float32)
        noise_type = rng.random()
        if noise_type < 0.5:  # falling towards high frequencies, as in most rooms and lines
            noise[1:] += np.float32(0.9) * noise[:-1]
            noise[2:] += np.float32(0.8) * noise[:-2]
        loudness = np.sqrt(np.square(out).mean()) / np.sqrt(np.square(noise).mean())
        out += noise * np.float32(loudness * 10 ** (-rng.uniform(10, 40) / 20))
    return level(out, 1.0 + strength * rng.uniform(0, 6))
