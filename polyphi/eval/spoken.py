"""Texts read aloud, for benchmarks whose questions are spoken: clips by text and voice, the same every time.

>>> spoken("How many legs has a spider?", "en")        # bytes of a FLAC file, 16 kHz
"""

import io
from functools import cache

import numpy as np

from polyphi.voice import Booth, Voice

RATE = 16_000


@cache
def _booth() -> Booth:
    return Booth()


def spoken(text: str, language: str = "en", voice: Voice | None = None) -> bytes:
    """The clip of a text in one of the eight languages, by espeak-ng unless a voice is given. Raises ValueError where
    that engine is missing."""
    import soundfile
    import soxr

    wave, rate = _booth().speak(text, voice or Voice(language=language))
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
