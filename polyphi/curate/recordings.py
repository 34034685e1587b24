"""Long recordings: pages read aloud by several people in turn, up to 30 minutes as one clip (report 3.4.2, SSUM).

>>> made = record(paragraphs, [Voice(variant="m1"), Voice(variant="f2")], seconds=1800)
>>> made.seconds, len(made.audio), made.said[0]           # 1795.2, 30 MB of FLAC, the first paragraph that was read

`ReadPages` is the step that makes such clips of documents, each with its transcript; `SPEECH_SUMMARY` (syntheses.py)
after it has a teacher ask for summaries and write them. A paragraph is spoken, written and forgotten: however long the
clip, no more of it is in memory than its compressed bytes. They are FLAC, for Opus files aren't the same twice.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import soundfile
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.curate.documents import note, replace_sample, sample
from polyphi.curate.language import language_of
from polyphi.curate.read_aloud import Cast
from polyphi.curate.voices import unfit
from polyphi.curate.waves import RATE, level, resample, trim
from polyphi.messages import TRANSCRIBE, Audio, Message
from polyphi.services.speech_synthesis import Booth, Voice

LONGEST = 1800.0
"""Seconds: 30 minutes are 22,500 tokens (report 2.2.1)."""
PAUSE = 0.5
"""Seconds between paragraphs."""
LONGEST_PARAGRAPH = 2000
"""Characters. Longer ones are passed over, as are those with code, tables or addresses."""


@dataclass(frozen=True)
class Recording:
    """A clip (FLAC, 16 kHz), what was said in it, and how long it is."""

    audio: bytes
    said: tuple[str, ...]
    seconds: float


def record(
    paragraphs: Iterable[str],
    voices: Sequence[Voice],
    *,
    seconds: float = LONGEST,
    booth: Booth | None = None,
) -> Recording:
    """Paragraphs read by each voice in turn, until the next would not end within `seconds`. Raises ValueError where
    not even the first does, or there is none."""
    booth, out, said = booth or Booth(), io.BytesIO(), list[str]()
    pause, frames = np.zeros(int(PAUSE * RATE), np.float32), 0
    with soundfile.SoundFile(out, "w", RATE, 1, format="FLAC", subtype="PCM_16") as file:
        for text in paragraphs:
            wave, rate = booth.speak(text, voices[len(said) % len(voices)])
            wave = level(resample(trim(wave, rate), rate), 3.0)
            before = len(pause) if said else 0
            if frames + before + len(wave) > seconds * RATE:
                break
            file.write(pause[:before])
            file.write(wave)
            frames += before + len(wave)
            said.append(text)
    if not said:
        raise ValueError(f"there is nothing to read aloud that ends within {seconds:g} s")
    return Recording(out.getvalue(), tuple(said), round(frames / RATE, 2))


class ReadPages(BaseFilter):
    """Makes a recording of each document, read by up to `people` voices in turn: at most `longest` seconds, what comes
    after is left out. The sample is a transcription, `meta["transcript"]` too. Drops documents that fill less than
    `shortest` seconds, and languages that nobody reads."""

    name, type = "ReadPages", "SPEECH"

    def __init__(
        self,
        voices: Cast,
        *,
        longest: float = LONGEST,
        shortest: float = 0.0,
        people: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= shortest < longest <= LONGEST:
            raise ValueError(
                f"a recording lasts up to {LONGEST:g} s; expected shortest < longest, "
                f"found {shortest:g} and {longest:g}"
            )
        self._voices, self._longest, self._shortest = voices, longest, shortest
        self._people, self._seed = people, seed
        self._booth: Booth | None = None  # opened by the process that reads

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True once the document is a recording; else why not."""
        language, split = language_of(doc), doc.metadata.get("split", "train")
        rng = Random(f"{self._seed}:{doc.id}")
        readings = [self._voices.reader(language, split, rng) for _ in range(self._people)]
        people = list(dict.fromkeys(r for r in readings if r))
        if not people:
            return False, f"nobody reads {language}"
        paragraphs = [p for p in map(str.strip, doc.text.splitlines()) if p]
        fit = [p for p in paragraphs if not unfit(p, LONGEST_PARAGRAPH)]
        if not fit:
            return False, "unfit to be read: no paragraph of plain words"
        self._booth = self._booth or Booth()
        made = record(fit, [r.voice for r in people], seconds=self._longest, booth=self._booth)
        if made.seconds < self._shortest:
            return False, "too short"
        one, names = sample(doc), ", ".join(r.name for r in people)
        text = "\n".join(made.said)
        meta = {
            **{key: value for key, value in one.meta.items() if key != "lineage"},
            "task": "transcription",
            "language": language,
            "engine": people[0].voice.engine,
            "speaker": names,
            "seconds": made.seconds,
            "transcript": text,
        }
        asked = Message.user(Audio(made.audio), TRANSCRIBE)
        spoken = replace(one, messages=(asked, Message.assistant(text)), meta=meta)
        replace_sample(doc, spoken)
        note(doc, "read aloud", speaker=names, seconds=made.seconds, paragraphs=len(made.said))
        return True
