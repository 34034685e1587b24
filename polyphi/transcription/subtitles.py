"""`Transcript` -> text, JSON, OpenAI's verbose JSON, SubRip (srt) and WebVTT (vtt).

>>> print(srt(transcript))
1
00:00:00,310 --> 00:00:02,480
Hello there.

A cue has at most two lines of 42 characters and 7 s, as in broadcasting; a longer segment becomes several cues, with
the times of its words if the transcript has them, otherwise by characters. Cues are in order without overlaps, and at
least a millisecond long. If a segment has a translation, cues show the translation.
"""

import html
import json as encoder
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from polyphi.transcription.words import join_texts, spoken_length, word_spans
from polyphi.types.transcript import Segment, Transcript, Word

LINE, LINES, SECONDS = 42, 2, 7.0
SHORTEST = 0.001  # s
FORMATS = ("text", "json", "verbose_json", "srt", "vtt")


class Cue(NamedTuple):
    """Up to two lines on the screen from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def write(transcript: Transcript, form: str) -> str:
    """A transcript in one of `FORMATS`, ending in a line break. Raises ValueError for another format."""
    writers = {"text": text, "json": json, "verbose_json": verbose_json, "srt": srt, "vtt": vtt}
    if form not in writers:
        raise ValueError(f"a format is one of {', '.join(FORMATS)}, found {form!r}")
    return writers[form](transcript)


def text(transcript: Transcript) -> str:
    """The transcript and the translation, if present, on separate lines."""
    lines = (transcript.text, transcript.translation)
    return "".join(f"{line}\n" for line in lines if line) or "\n"


def json(transcript: Transcript) -> str:
    """All fields of a `Transcript`, by their names."""
    return encoder.dumps(asdict(transcript), ensure_ascii=False, indent=1) + "\n"


def verbose(transcript: Transcript, language: str = "unknown") -> dict[str, Any]:
    """The transcript as OpenAI's `verbose_json` with a `source` of each time, and `warnings`. Of a translation `text`
    is the translation, and has a `transcript` if the model wrote one; then the probabilities are those of the
    transcript. The language isn't detected: it is the argument. `no_speech_prob` is the share of a segment's time in
    which the voice activity detector (vad.py) finds no speech; the model estimates none."""
    translation = transcript.translation
    result: dict[str, Any] = {
        "task": "transcribe" if translation is None else "translate",
        "language": language,
        "duration": round(transcript.seconds, 3),
        "text": transcript.text if translation is None else translation,
        "segments": [_segment(n, segment) for n, segment in enumerate(transcript.segments)],
    }
    if transcript.words:
        result["words"] = [_word(word) for word in transcript.words]
    if translation is not None and transcript.text:
        result["transcript"] = transcript.text
    return {**result, "warnings": list(transcript.warnings)}


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    text = (segment.text if segment.translation is None else segment.translation).encode()
    result: dict[str, Any] = {
        "id": number,
        "seek": round(segment.seek * 100),  # Whisper's frames of 10 ms
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": text.decode(),
        "temperature": segment.temperature,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 3),
        "source": segment.source,
    }
    if segment.silence is not None:
        result["no_speech_prob"] = round(segment.silence, 3)
    if segment.avg_logprob is not None:
        result["avg_logprob"] = segment.avg_logprob
    if segment.translation is None:
        return {**result, "tokens": list(segment.tokens)}
    return {**result, "transcript": segment.text}


def _word(word: Word) -> dict[str, Any]:
    times = {"start": round(word.start, 3), "end": round(word.end, 3)}
    return {"word": word.text, **times, "source": word.source}


def verbose_json(transcript: Transcript) -> str:
    """The transcript in the `verbose` form as JSON text."""
    return encoder.dumps(verbose(transcript), ensure_ascii=False, indent=1) + "\n"


def srt(transcript: Transcript) -> str:
    """The transcript as SubRip subtitles. The format has no escapes, so an arrow in a text is shortened: players parse
    it."""
    blocks = []
    for number, cue in enumerate(cues(transcript), 1):
        lines = "\n".join(re.sub("-{2,}>", "->", line) for line in cue.lines)
        blocks.append(f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{lines}\n")
    return "\n".join(blocks) or "\n"


def vtt(transcript: Transcript) -> str:
    """WebVTT, with &, < and > escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript):
        lines = "\n".join(html.escape(line, quote=False) for line in cue.lines)
        blocks.append(f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{lines}\n")
    return "\n".join(blocks)


def cues(transcript: Transcript) -> list[Cue]:
    """The cues of a transcript, in order."""
    result: list[Cue] = []
    latest = 0.0
    for segment in transcript.segments:
        for start, end, lines in _split(segment, transcript):
            # Rounded to milliseconds as written, so that the written times are in order.
            start = max(round(start, 3), latest)
            latest = max(round(end, 3), round(start + SHORTEST, 3))
            result.append(Cue(start, latest, lines))
    return result


def _split(
    segment: Segment, transcript: Transcript
) -> Iterator[tuple[float, float, tuple[str, ...]]]:
    """A segment as cues that fit the screen."""
    text = segment.text if segment.translation is None else segment.translation
    text = re.sub(r"\s+", " ", text).strip()
    spans = word_spans(text)
    if not spans:
        return
    edges = [0.0]
    for a, b in spans:
        edges.append(edges[-1] + spoken_length(text[a:b]))
    times = [segment.start + (segment.end - segment.start) * e / edges[-1] for e in edges]
    starts, ends = times[:-1], times[1:]
    timed = [w for w in transcript.words if segment.start <= w.start and w.end <= segment.end]
    if segment.translation is None and [w.text for w in timed] == [text[a:b] for a, b in spans]:
        starts, ends = [w.start for w in timed], [w.end for w in timed]
    first = 0
    lines: list[str] = []
    for n, (a, b) in enumerate(spans):
        word = text[a:b]
        line = join_texts(lines[-1], word) if lines else word
        if n > first and (
            ends[n] - starts[first] > SECONDS or (len(line) > LINE and len(lines) == LINES)
        ):
            yield starts[first], ends[n - 1], tuple(lines)
            first, lines, line = n, [], word
        if not lines or len(line) > LINE:
            lines.append(word)
        else:
            lines[-1] = line
    yield starts[first], ends[-1], tuple(lines)


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
