"""Transcripts of recordings, with the prompts and languages of the report's speech tasks."""

import re
from dataclasses import dataclass, field
from typing import Literal

from polyphi.runtime.arguments import checked_fields

TRANSCRIBE = "Transcribe the audio clip into text."
"""The published prompt of a transcription."""
TRANSLATE = "Translate the audio to {}."
TRANSCRIBE_AND_TRANSLATE = (
    "Transcribe the audio to text, and then translate the audio to {}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
"""The published prompts of a translation, direct and with chain of thought, for a language's English name."""
LONGEST_RECORDING = 24 * 3600.0
"""Most seconds of a recording."""
LANGUAGES: dict[str, str] = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "de": "German",
    "it": "Italian",
    "ja": "Japanese",
    "pt": "Portuguese",
    "es": "Spanish",
}
"""Code -> English name of the eight languages (the Tier-1 languages of the report's speech and safety work)."""
TimeSource = Literal["window", "aligned", "estimated"]
"""The source of a time. "window": the bounds of the segment of audio that the model transcribed. "aligned": the
decoder's attention to the audio (transcription/align.py). "estimated": character counts over voiced time."""


@dataclass(frozen=True)
class Word:
    """A word (a character in scripts without spaces), from `start` to `end` in seconds."""

    text: str
    start: float
    end: float
    source: TimeSource = "estimated"


@dataclass(frozen=True)
class Segment:
    """A segment of speech from `start` to `end` in seconds with its text (the translation if only that was requested;
    with both, the translation is in `translation`). `tokens`: the model's tokens of `text`; `logprobs`: their natural
    log-probabilities, empty if not recorded; `avg_logprob`: the mean of these; `temperature`: the one they were sampled
    at; `seek`: start of the window of the recording that was transcribed, in seconds; `silence`: the share of its time
    without speech (transcription/vad.py)."""

    start: float
    end: float
    text: str
    avg_logprob: float | None = None
    source: TimeSource = "window"
    temperature: float = 0.0
    translation: str | None = None
    seek: float = 0.0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    silence: float | None = None


@checked_fields
@dataclass(frozen=True)
class Transcript:
    """The transcript of a recording; `translation` if requested. `warnings` name problems and their times in the
    recording. `words` are present if requested; they and `segments` are in order of time and don't overlap. The token
    counts include all answers, also repeated ones."""

    text: str
    seconds: float = 0.0
    translation: str | None = None
    warnings: tuple[str, ...] = field(default=())
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()
    adapter: str | None = None
    prompt_tokens: int = 0
    audio_tokens: int = 0
    answer_tokens: int = 0

    def __str__(self) -> str:
        return self.text if self.translation is None else self.translation


def language(name_or_code: str) -> str:
    """The name of a language from its code, with a region or without ("de", "de-AT"), or its name, in any case. Raises
    ValueError for one that the model wasn't trained for."""
    names = {name.lower(): name for name in LANGUAGES.values()}
    lower = name_or_code.lower()
    code = re.split("[-_]", lower, maxsplit=1)[0]
    if name := names.get(lower) or LANGUAGES.get(code):
        return name
    supported = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
    raise ValueError(
        f"unknown language {name_or_code[:40]!r}; the model's languages of speech are {supported}"
    )
