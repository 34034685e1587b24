"""The word error rate filter: keeps clips whose transcript a recognizer confirms (report 3.3).

    transcript      recognized      errors
    seven nine      seven nine      0 %         kept
    seven nine      two red dogs    150 %       dropped: "word error rate 150 %"

A recognizer that doesn't understand some type of speech would filter at random. Its known limits are part of it: for
unsuitable speech the filter raises an error that names the clip. Without known limits, `measure` it first on clips
with certain text.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import soundfile
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.shards import Sample
from polyphi.processing.audio import resample
from polyphi.types.parts import Audio
from polyphi_eval.text.normalization import wer
from polyphi_recipe.pipeline.documents import note, sample

RATE = 16_000
USABLE = 0.35
"""[ours] The maximum median word error rate, on clips of known text, of a recognizer that may filter."""


@dataclass(frozen=True)
class Recogniser:
    """`transcribe(encoded clip, language)` returns text. `languages` are its languages (empty: all); `unfit` maps
    engines whose speech it doesn't understand to the measurement."""

    name: str
    transcribe: Callable[[bytes, str], str]
    languages: tuple[str, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)

    def refuses(self, language: str, engine: str) -> str | None:
        """Return why the recognizer can't judge speech in `language` by `engine`, or None."""
        if self.languages and language not in self.languages:
            return f"{self.name} supports only {', '.join(self.languages)}, not {language}"
        if reason := self.unfit.get(engine):
            return f"{self.name} doesn't understand {engine} ({reason})"
        return None


def pocketsphinx() -> Recogniser:
    """Return CMU's small recognizer, English only. On twenty sentences its word error rate was 5 to 11 % for flite's
    voices and 70 % for espeak-ng's. Raises ValueError if the package isn't installed."""
    try:
        _decoder()
    except ImportError as error:
        raise ValueError(
            f"pocketsphinx isn't installed ({error}); `pip install pocketsphinx`"
        ) from None
    return Recogniser("pocketsphinx", _transcribe, ("en",), {"espeak-ng": "70 % word errors"})


@cache
def _decoder() -> Any:
    """Return the decoder, one per process: it can't be copied, and datatrove copies its steps."""
    from pocketsphinx import Decoder

    return Decoder(samprate=RATE, loglevel="FATAL")  # loading its model takes a second


def _transcribe(audio: bytes, language: str) -> str:
    wave, rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    mono, _ = resample(wave.mean(1), rate)
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((np.clip(mono, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


def transcript(sample: Sample) -> str:
    """Return the text of a clip: `meta["question"]` if a question is spoken, else the answer."""
    return str(sample.meta.get("question") or sample.answer)


def measure(recogniser: Recogniser, clips: Iterable[Sample]) -> float:
    """Return the recognizer's median word error rate on clips of certain text: above `USABLE` it shouldn't filter.
    Raises ValueError without clips."""
    rates = [_word_errors(recogniser, clip, transcript(clip))[0] for clip in clips]
    if not rates:
        raise ValueError("expected clips of known text to measure a recognizer, found none")
    return median(rates)


def _word_errors(recognizer: Recogniser, clip: Sample, text: str) -> tuple[float, str]:
    """Return (word error rate of `text`, the recognizer's text). Raises ValueError if the recognizer is unfit for such
    speech, or the sample hasn't one clip."""
    language, engine = clip.meta.get("language", "en"), clip.meta.get("engine", "")
    # Of a question about an image `language` is the answer's.
    language = clip.meta.get("spoken", language)
    if reason := recognizer.refuses(language, engine):
        raise ValueError(f"{reason}: sample {clip.id} can't be judged; choose another recognizer")
    audio = [p.source for m in clip.messages for p in m.parts if isinstance(p, Audio)]
    if len(audio) != 1 or not isinstance(audio[0], bytes):
        raise ValueError(f"sample {clip.id}: expected one clip, found {len(audio)}")
    hypothesis = recognizer.transcribe(audio[0], language)
    return wer(text, hypothesis, language), hypothesis


class WordErrorRateFilter(BaseFilter):
    """Keeps clips that the recognizer transcribes with at most `limit` word errors per word (characters in Chinese and
    Japanese). Samples without audio pass, and those of which `text` is None."""

    name = "WordErrors"

    def __init__(
        self,
        recogniser: Recogniser,
        limit: float,
        text: Callable[[Sample], str | None] = transcript,
    ) -> None:
        super().__init__()
        self._recognizer, self._limit, self._text = recogniser, limit, text

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason. Raises ValueError if the recognizer is unfit for such speech."""
        if not any(m.metadata["kind"] == "audio" for m in doc.media):
            return True
        clip = sample(doc)
        if (text := self._text(clip)) is None:
            return True
        rate, hypothesis = _word_errors(self._recognizer, clip, text)
        note(
            doc,
            "word errors",
            recogniser=self._recognizer.name,
            rate=round(rate, 3),
            limit=self._limit,
            hypothesis=hypothesis,
        )
        return rate <= self._limit or (False, f"word error rate above {self._limit:.0%}")
