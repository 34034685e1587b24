"""Texts read aloud, for benchmarks whose questions are spoken: clips by text and voice, the same every time.

>>> spoken("How many legs has a spider?", "en")        # bytes of a FLAC file, 16 kHz
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from polyphi.chat import Audio, Message, Part, Text
from polyphi.voice import Booth, Voice

RATE = 16_000


@lru_cache(maxsize=256)  # dialogues hear their first turns again with every further one
def spoken(text: str, language: str = "en", voice: Voice | None = None) -> bytes:
    """The clip of a text in one of the eight languages, by espeak-ng unless a voice is given. Raises ValueError where
    that engine is missing."""
    import soundfile
    import soxr

    booth = Booth()  # one for each clip: what espeak-ng says depends on what it said before
    try:
        wave, rate = booth.speak(text, voice or Voice(language=language))
    finally:
        booth.close()
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@dataclass(frozen=True)
class Spoken(Audio):
    """A clip and the text that it says: models hear the one, people and judges read the other."""

    text: str = ""


def heard(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as a model gets it: of what is spoken, the clips alone."""
    return _with(messages, lambda part: Audio(part.source))


def read_out(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as it is read: of what is spoken, the texts alone."""
    return _with(messages, lambda part: Text(part.text))


def _with(messages: Sequence[Message], shown: Callable[[Spoken], Part]) -> list[Message]:
    return [
        replace(m, parts=tuple(shown(p) if isinstance(p, Spoken) else p for p in m.parts))
        for m in messages
    ]
