"""Texts read aloud, for benchmarks whose questions are spoken: clips by text and voice, the same every time.

>>> spoken("How many legs has a spider?", "en")        # bytes of a FLAC file, 16 kHz
"""

import io
from functools import cache

import numpy as np

from polyphi.voice import Booth, Voice

RATE = 16_000
SENTENCE = {
    "en": "The train leaves at nine in the morning.",
    "de": "Der Zug fährt um neun Uhr morgens ab.",
    "es": "El tren sale a las nueve de la mañana.",
    "fr": "Le train part à neuf heures du matin.",
    "it": "Il treno parte alle nove del mattino.",
    "ja": "でんしゃは あさの くじに でます。",
    "pt": "O trem parte às nove da manhã.",
    "zh": "火车早上九点出发。",
}
"""One sentence of our own in the eight languages, for stand-ins of public data; Japanese in kana, which espeak-ng
reads."""


@cache
def _booth() -> Booth:
    return Booth()


def spoken(
    text: str, language: str = "en", voice: Voice | None = None, kind: str = "FLAC"
) -> bytes:
    """The clip of a text in one of the eight languages, by espeak-ng unless a voice is given, as FLAC, WAV or MP3.
    Raises ValueError where that engine is missing."""
    import soundfile
    import soxr

    wave, rate = _booth().speak(text, voice or Voice(language=language))
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    subtype = "MPEG_LAYER_III" if kind == "MP3" else "PCM_16"
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format=kind, subtype=subtype)
    return file.getvalue()
