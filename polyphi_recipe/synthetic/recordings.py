"""Long recordings: pages read aloud by several voices in turn, up to 30 minutes as one audio clip (report 3.4.2, SSUM).

>>> recording = record(paragraphs, [Voice(variant="m1"), Voice(variant="f2")], seconds=1800)
>>> recording.seconds, len(recording.audio), recording.paragraphs[0]     # 1795.2, 30 MB of FLAC, the first paragraph

`ReadPages` is the step that turns documents into such recordings with transcripts; `SPEECH_SUMMARY` (syntheses.py)
after it requests summaries from a teacher. Paragraphs are synthesized and written one at a time, so that only the
compressed bytes are in memory. They are FLAC, because Opus files aren't deterministic.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import soundfile
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.transcript import TRANSCRIBE
from polyphi_eval.services.speech_synthesis import TTSPool, Voice
from polyphi_recipe.filters.language import language_of
from polyphi_recipe.pipeline.documents import note, replace_sample, sample
from polyphi_recipe.synthetic.read_aloud import SplitVoices
from polyphi_recipe.synthetic.voices import unfit
from polyphi_recipe.synthetic.waves import RATE, level, resample, trim

LONGEST = 1800.0
"""Maximum seconds of a recording: 30 minutes are 22,500 tokens (report 2.2.1)."""
PAUSE = 0.5
"""Seconds between paragraphs."""
LONGEST_PARAGRAPH = 2000
"""Maximum characters of a paragraph. Longer paragraphs are skipped, as are those with code, tables or addresses."""


@dataclass(frozen=True)
class ReadRecording:
    """An audio clip (FLAC, 16 kHz), its paragraphs, and its length."""

    audio: bytes
    paragraphs: tuple[str, ...]
    seconds: float


def record(
    paragraphs: Iterable[str],
    voices: Sequence[Voice],
    *,
    seconds: float = LONGEST,
    tts_pool: TTSPool | None = None,
) -> ReadRecording:
    """Return a recording of paragraphs read by each voice in turn, up to the last that ends within `seconds`. Raises
    ValueError if not even the first does, or there is none."""
    tts_pool, out, spoken = tts_pool or TTSPool(), io.BytesIO(), list[str]()
    pause, frames = np.zeros(int(PAUSE * RATE), np.float32), 0
    with soundfile.SoundFile(out, "w", RATE, 1, format="FLAC", subtype="PCM_16") as file:
        for text in paragraphs:
            wave, rate = tts_pool.speak(text, voices[len(spoken) % len(voices)])
            wave = level(resample(trim(wave, rate), rate), 3.0)
            before = len(pause) if spoken else 0
            if frames + before + len(wave) > seconds * RATE:
                break
            file.write(pause[:before])
            file.write(wave)
            frames += before + len(wave)
            spoken.append(text)
    if not spoken:
        raise ValueError(f"there is nothing to read aloud that ends within {seconds:g} s")
    return ReadRecording(out.getvalue(), tuple(spoken), round(frames / RATE, 2))


class ReadPages(BaseFilter):
    """Replaces each document by a recording of it, read by up to `people` voices in turn: at most `longest` seconds,
    the remainder is dropped. The new sample is a transcription with `meta["transcript"]`. Drops documents that fill
    less than `shortest` seconds, and languages without a voice."""

    name, type = "ReadPages", "SPEECH"

    def __init__(
        self,
        voices: SplitVoices,
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
        self._tts_pool: TTSPool | None = None  # opened by the process that reads

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        language, split = language_of(doc), doc.metadata.get("split", "train")
        rng = Random(f"{self._seed}:{doc.id}")
        readings = [self._voices.reader(language, split, rng) for _ in range(self._people)]
        people = list(dict.fromkeys(r for r in readings if r))
        if not people:
            return False, f"no voice reads {language}"
        paragraphs = [p for p in map(str.strip, doc.text.splitlines()) if p]
        readable = [p for p in paragraphs if not unfit(p, LONGEST_PARAGRAPH)]
        if not readable:
            return False, "unfit to be read: no paragraph of plain words"
        self._tts_pool = self._tts_pool or TTSPool()
        recording = record(
            readable, [r.voice for r in people], seconds=self._longest, tts_pool=self._tts_pool
        )
        if recording.seconds < self._shortest:
            return False, "too short"
        one, speakers = sample(doc), ", ".join(r.name for r in people)
        text = "\n".join(recording.paragraphs)
        meta = {
            **{key: value for key, value in one.meta.items() if key != "lineage"},
            "task": "transcription",
            "language": language,
            "engine": people[0].voice.engine,
            "speaker": speakers,
            "seconds": recording.seconds,
            "transcript": text,
        }
        prompt = Message.user(Audio(recording.audio), TRANSCRIBE)
        transcription = replace(one, messages=(prompt, Message.assistant(text)), meta=meta)
        replace_sample(doc, transcription)
        note(
            doc,
            "read aloud",
            speaker=speakers,
            seconds=recording.seconds,
            paragraphs=len(recording.paragraphs),
        )
        return True
