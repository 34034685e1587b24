"""Speech that a test can decode: each word is a tone with its own pitch; `decode_words` reads the words of samples."""

from collections.abc import Sequence

import numpy as np

WORD = 0.3  # s
LOWEST, STEP = 300.0, 25.0  # Hz
PARTLY = "hm"  # what a word that was cut sounds like


def say(
    words: Sequence[int], pauses: Sequence[float], rate: int = 16000, noise: float = 1e-4
) -> np.ndarray:
    """Words, each with a pause in seconds before it, and one pause at the end."""
    parts, t = [], np.arange(round(WORD * rate)) / rate
    for word, pause in zip(words, pauses, strict=False):
        parts.append(np.zeros(round(pause * rate)))
        parts.append(
            0.3 * np.sin(2 * np.pi * (LOWEST + STEP * word) * t) * np.hanning(len(t)) ** 0.3
        )
    parts.append(np.zeros(round(pauses[len(words)] * rate)))
    wave = np.concatenate(parts)
    return (wave + noise * np.random.default_rng(0).standard_normal(len(wave))).astype(np.float32)


def decode_words(wave: np.ndarray, rate: int) -> list[str]:
    """The words in some samples, those that are cut short as `PARTLY`."""
    step = rate // 100
    loud = np.abs(wave[: len(wave) // step * step]).reshape(-1, step).max(axis=1) > 0.02
    edges = np.flatnonzero(np.diff(loud.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    words = []
    for first, last in edges * step:
        if last - first < 0.9 * WORD * rate:
            words.append(PARTLY)
            continue
        middle = wave[first:last] * np.hanning(last - first)
        pitch = np.abs(np.fft.rfft(middle, 1 << 15)).argmax() * rate / (1 << 15)
        words.append(f"w{round((pitch - LOWEST) / STEP)}")
    return words
