"""Speech of a text, for benchmarks whose questions are spoken.

>>> spoken("How many legs has a spider?", "en")                  # bytes of a FLAC file, 16 kHz
"""

import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from polyphi.messages import Audio, Message, Part, Text
from polyphi.services.speech_synthesis import TTSPool, Voice

RATE = 16_000
LETTERS = "ABCDEFGHIJ"
_KANJI = re.compile(r"[\u3400-\u9fff]")


@lru_cache(maxsize=256)  # every turn of a dialogue repeats the turns before it
def spoken(
    text: str, language: str = "en", voice: Voice | None = None, kind: str = "FLAC"
) -> bytes:
    """The clip of a text in one of the eight languages, by espeak-ng unless a voice is given, as FLAC, WAV or MP3.
    Raises ValueError where that engine is missing."""
    import soundfile
    import soxr

    voice = voice or Voice(language=language)
    tts_pool = TTSPool()  # one for each clip: what espeak-ng says depends on what it said before
    try:
        wave, rate = tts_pool.speak(_readable(text, language, voice), voice)
    finally:
        tts_pool.close()
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    subtype = "MPEG_LAYER_III" if kind == "MP3" else "PCM_16"
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format=kind, subtype=subtype)
    return file.getvalue()


@dataclass(frozen=True)
class Spoken(Audio):
    """Audio and the text that it says: models get the audio, people and judges the text."""

    text: str = ""


def audio_only(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as a model gets it: the audio of `Spoken` parts alone."""
    return _with(messages, lambda part: Audio(part.source))


def text_only(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as judges read it: the text of `Spoken` parts alone."""
    return _with(messages, lambda part: Text(part.text))


def _with(messages: Sequence[Message], convert: Callable[[Spoken], Part]) -> list[Message]:
    return [
        replace(m, parts=tuple(convert(p) if isinstance(p, Spoken) else p for p in m.parts))
        for m in messages
    ]


def _readable(text: str, language: str, voice: Voice) -> str:
    """What the engine can read: espeak-ng's Japanese is kana only."""
    if voice.engine != "espeak-ng" or language != "ja" or not _KANJI.search(text):
        return text
    return "\n".join(_readings().parse(line).strip() for line in text.splitlines())


@cache
def _readings() -> Any:
    try:
        import ipadic
        import MeCab
    except ImportError:
        raise ValueError(
            "espeak-ng reads Japanese in kana only, which MeCab makes of other text; pip install 'polyphi[eval]', or "
            "give another --voice"
        ) from None
    return MeCab.Tagger(f"{ipadic.MECAB_ARGS} -Oyomi")


def with_options(question: str, options: Sequence[str]) -> str:
    """A question and its lettered options as they are read aloud, a pause after each."""
    sentences = [question, *(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=False))]
    return "\n".join(
        s if unicodedata.category((s.strip() or ".")[-1])[0] == "P" else f"{s}." for s in sentences
    )
