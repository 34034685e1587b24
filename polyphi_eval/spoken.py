"""Speech synthesis for benchmarks with spoken questions.

>>> synthesize("How many legs has a spider?", "en")              # bytes of a FLAC file, 16 kHz
"""

import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from polyphi.runtime.installation import pip_install
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Part, Text
from polyphi_eval.services.speech_synthesis import TTSPool, Voice

RATE = 16_000
LETTERS = "ABCDEFGHIJ"
_KANJI = re.compile(r"[\u3400-\u9fff]")


@lru_cache(maxsize=256)  # every turn of a dialogue repeats the earlier turns
def synthesize(
    text: str, language: str = "en", voice: Voice | None = None, format: str = "FLAC"
) -> bytes:
    """Return speech of a text in one of the eight languages, by espeak-ng or `voice`, as FLAC, WAV or MP3. Raises
    ValueError if that engine is missing."""
    import soundfile
    import soxr

    voice = voice or Voice(language=language)
    tts_pool = TTSPool()  # one per text: espeak-ng's output depends on its earlier texts
    try:
        wave, rate = tts_pool.speak(_readable(text, language, voice), voice)
    finally:
        tts_pool.close()
    file = io.BytesIO()
    samples = soxr.resample(wave, rate, RATE) if rate != RATE else wave
    subtype = "MPEG_LAYER_III" if format == "MP3" else "PCM_16"
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format=format, subtype=subtype)
    return file.getvalue()


@dataclass(frozen=True)
class SpokenText(Audio):
    """Audio and its text: models receive the audio, judges the text."""

    text: str = ""


def audio_only(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation for models: with the audio of `SpokenText` parts."""
    return _convert(messages, lambda part: Audio(part.source))


def text_only(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation for judges: with the text of `SpokenText` parts."""
    return _convert(messages, lambda part: Text(part.text))


def _convert(messages: Sequence[Message], convert: Callable[[SpokenText], Part]) -> list[Message]:
    return [
        replace(m, parts=tuple(convert(p) if isinstance(p, SpokenText) else p for p in m.parts))
        for m in messages
    ]


def _readable(text: str, language: str, voice: Voice) -> str:
    """Return text that the engine can read: kana for espeak-ng's Japanese."""
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
            f"espeak-ng reads only kana, and the conversion needs MeCab; {pip_install('eval')}, or use another --voice"
        ) from None
    return MeCab.Tagger(f"{ipadic.MECAB_ARGS} -Oyomi")


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question and its options with letters as a text for speech, with a pause after each."""
    sentences = [question, *(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=False))]
    return "\n".join(
        s if unicodedata.category((s.strip() or ".")[-1])[0] == "P" else f"{s}." for s in sentences
    )
