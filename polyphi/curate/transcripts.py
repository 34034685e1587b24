"""The word error rate filter: a clip stays where a recogniser hears what its transcript says (report 3.3).

    transcript      heard           errors
    seven nine      seven nine      0 %         stays
    seven nine      two red dogs    150 %       dropped: "word error rate 150 %"

A recogniser that doesn't understand a kind of speech would only throw dice. What is known of each stands with it: where
it is unfit the filter refuses to run, and names the clip. Where nothing is known, `measure` it first on clips whose
text is certain.
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

from polyphi.curate.documents import note, sample
from polyphi.data.shards import Sample
from polyphi.messages import Audio
from polyphi.processing.audio import resample
from polyphi.text.normalization import wer

RATE = 16_000
USABLE = 0.35
"""[ours] The median word error rate, on clips of known text, up to which a recogniser may filter."""


@dataclass(frozen=True)
class Recogniser:
    """`hear(encoded clip, language)` gives text. `languages` are those it knows (none: all); `unfit` names engines
    whose speech it is known not to understand, each with what was measured."""

    name: str
    hear: Callable[[bytes, str], str]
    languages: tuple[str, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)

    def refuses(self, language: str, engine: str) -> str | None:
        """Why it can't judge such speech, or None."""
        if self.languages and language not in self.languages:
            return f"{self.name} knows only {', '.join(self.languages)}, not {language}"
        if reason := self.unfit.get(engine):
            return f"{self.name} doesn't understand {engine} ({reason})"
        return None


def pocketsphinx() -> Recogniser:
    """CMU's small recogniser, English only. On twenty sentences its word error rate was 5 to 11 % for flite's voices
    and 70 % for espeak-ng's. Raises ValueError where the package isn't there."""
    try:
        _decoder()
    except ImportError as error:
        raise ValueError(
            f"pocketsphinx isn't installed ({error}); `pip install pocketsphinx`"
        ) from None
    return Recogniser("pocketsphinx", _heard, ("en",), {"espeak-ng": "70 % word errors"})


@cache
def _decoder() -> Any:
    """One per process, made at first use: it can't be copied, and datatrove copies its steps."""
    from pocketsphinx import Decoder

    return Decoder(samprate=RATE, loglevel="FATAL")  # its model takes a second


def _heard(clip: bytes, language: str) -> str:
    wave, rate = soundfile.read(io.BytesIO(clip), dtype="float32", always_2d=True)
    mono, _ = resample(wave.mean(1), rate)
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((np.clip(mono, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return found.hypstr if found else ""


def transcript(sample: Sample) -> str:
    """What a clip is said to say: `meta["question"]` where a question is spoken, else the answer."""
    return str(sample.meta.get("question") or sample.answer)


def measure(recogniser: Recogniser, clips: Iterable[Sample]) -> float:
    """Its median word error rate on clips whose text is certain: above `USABLE` it shouldn't filter. Raises ValueError
    where there are none."""
    found = [_judged(recogniser, clip)[0] for clip in clips]
    if not found:
        raise ValueError("a recogniser is measured on clips of known text, found none")
    return median(found)


def _judged(recogniser: Recogniser, clip: Sample) -> tuple[float, str]:
    """(word error rate, what was heard). Raises ValueError where the recogniser is unfit for such speech, or the
    sample hasn't one clip."""
    language, engine = clip.meta.get("language", "en"), clip.meta.get("engine", "")
    language = clip.meta.get(
        "spoken", language
    )  # of a question about a picture, `language` is the answer's
    if reason := recogniser.refuses(language, engine):
        raise ValueError(f"{reason}: sample {clip.id} can't be judged; choose another recogniser")
    audio = [p.source for m in clip.messages for p in m.parts if isinstance(p, Audio)]
    if len(audio) != 1 or not isinstance(audio[0], bytes):
        raise ValueError(f"sample {clip.id}: expected one clip, found {len(audio)}")
    heard = recogniser.hear(audio[0], language)
    return wer(transcript(clip), heard, language), heard


class WordErrors(BaseFilter):
    """Lets clips through that the recogniser hears with at most `limit` word errors per word (characters in Chinese and
    Japanese). Samples without a clip pass."""

    name = "WordErrors"

    def __init__(self, recogniser: Recogniser, limit: float) -> None:
        super().__init__()
        self._recogniser, self._limit = recogniser, limit

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Raises ValueError where the recogniser is unfit for what it is to judge."""
        if not any(m.metadata["kind"] == "audio" for m in doc.media):
            return True
        rate, heard = _judged(self._recogniser, sample(doc))
        note(
            doc,
            "word errors",
            recogniser=self._recogniser.name,
            rate=round(rate, 3),
            limit=self._limit,
            heard=heard,
        )
        return rate <= self._limit or (False, f"word error rate above {self._limit:.0%}")
