"""Answers to the pieces of a recording -> one `Transcript`: joined text, segments and words with their times.

`Segment.source` says how a time was determined. A piece of at most 10 s is one segment with the piece's words:
"window". Longer pieces are split by the times of their words, which come from attention if requested ("aligned",
align.py); otherwise a word's share of the voiced time is its share of the characters ("estimated").
docs/transcription.md has the errors of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription.vad import (
    VoiceFeatures,
    silences,
    silent_share,
    speech_ranges,
    voiced_shares,
)
from polyphi.transcription.words import (
    join_texts,
    script,
    seam,
    spoken_length,
    stable_prefix,
    token_spans,
    word_spans,
)
from polyphi.types.completion import Completion
from polyphi.types.transcript import Segment, TimeSource, Transcript, Word

SEPARATOR = "<sep>"
"""Separator of transcript and translation if both are requested."""
MAX_SEGMENT = 10.0  # s; the longest segment
WORDS_A_SECOND = 8.0  # more than fast speakers say
MIN_REPORTED = 0.5  # s; shorter omissions have no warning

Timed = tuple[int, int, float, float]  # characters from and to, seconds from and to


@dataclass(frozen=True)
class Piece:
    """A range of a recording in seconds, transcribed as one clip. `overlaps`: it overlaps the previous piece."""

    start: float
    end: float
    overlaps: bool = False

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{clock(self.start)} to {clock(self.end)}"


@dataclass(frozen=True)
class PieceAnswer:
    """The answer to a piece, warnings about it (`doubts`), and, if it was aligned, the (start, end) of each token in
    seconds from the piece's start."""

    piece: Piece
    answer: Completion
    temperature: float = 0.0
    doubts: tuple[str, ...] = ()
    times: tuple[tuple[float, float], ...] | None = None


@dataclass
class _PieceText:
    """The transcript, or the translation, of a piece: `text`, which begins at `offset` of the answer; its characters
    `begin` to `end` remain after the seams."""

    answer: PieceAnswer
    text: str
    offset: int
    begin: int = 0
    end: int = field(init=False)

    def __post_init__(self) -> None:
        bare = self.text.lstrip()
        self.offset += len(self.text) - len(bare)
        self.text = bare.rstrip()
        self.end = len(self.text)

    @property
    def remaining(self) -> str:
        """The text between the seams."""
        return self.text[self.begin : self.end]


def join(
    tokenizer: Tokenizer,
    sound: VoiceFeatures,
    answers: Sequence[PieceAnswer],
    texts: str = "transcript",
    *,
    words: bool = False,
    expected: str = "",
) -> Transcript:
    """The transcript of a recording from the answers to its pieces, in order of time. `texts`: the content of an
    answer, "transcript", "translation" or "both". `expected`: the expected script of the last of these."""
    notes = [(a.piece.start, f"{a.piece}: {doubt}") for a in answers for doubt in a.doubts]
    for start, end in silences(_covered(answers), sound.seconds, MIN_REPORTED):
        notes.append(
            (start, f"{clock(start)} to {clock(end)}: silence, or noise without a voice, left out")
        )
    first, second = [], []
    for a in answers:
        one, other_one = _split(a, texts)
        first.append(one)
        second.append(other_one)
        if texts == "both" and SEPARATOR not in a.answer.text:
            notes.append(
                (
                    a.piece.start,
                    f"{a.piece}: the model wrote no {SEPARATOR}, so its answer has no separate translation",
                )
            )
    whole, other = _joined(first, notes), _joined(second, notes)
    notes += _unexpected_scripts(second if texts == "both" else first, expected)
    segments, timed = _segments(tokenizer, sound, first, second if texts == "both" else ())
    warnings = tuple(text for _, text in sorted(notes, key=lambda note: note[0]))
    timed_words = timed if words else ()
    if texts == "translation":
        return Transcript("", sound.seconds, whole, warnings, segments, timed_words)
    if texts == "both" and (other or not answers):
        return Transcript(whole, sound.seconds, other, warnings, segments, timed_words)
    return Transcript(whole, sound.seconds, None, warnings, segments, timed_words)


def text_of(transcript: Transcript) -> str:
    """The translation of a translation task, otherwise the transcript's text."""
    return transcript.text if transcript.translation is None else transcript.translation


class StreamedText:
    """The final text of a recording while its pieces are transcribed: the transcript, or the translation if requested.
    Its deltas join to the text of `join`.

    >>> streamed = StreamedText("transcript")
    >>> streamed.add(answer, following)              # the text that is final now, often without the last words
    """

    def __init__(self, texts: str) -> None:
        self._texts = texts
        self._whole = ""  # of all pieces but the last
        self._last: _PieceText | None = None
        self._sent = 0

    def add(self, answer: PieceAnswer, following: Piece | None) -> str:
        """The text that becomes final with the next answer in order of time. `following`: the piece after it, or None.
        If that overlaps this one, the last words are held back until its answer."""
        part = _split(answer, self._texts)[1 if self._texts == "both" else 0]
        if self._last is not None:
            _trim(self._last, part)
            self._whole = join_texts(self._whole, self._last.remaining)
        self._last = part
        final = part.remaining
        if following is not None and following.overlaps:
            final = stable_prefix(final)
        text = join_texts(self._whole, final)
        delta, self._sent = text[self._sent :], len(text)
        return delta


def _split(answer: PieceAnswer, texts: str) -> tuple[_PieceText, _PieceText]:
    """The text of an answer, and for "both" the translation after it ("" otherwise)."""
    text, separator, rest = answer.answer.text, "", ""
    if texts == "both":
        text, separator, rest = text.partition(SEPARATOR)
    return _PieceText(answer, text, 0), _PieceText(answer, rest, len(text) + len(separator))


def _covered(answers: Sequence[PieceAnswer]) -> list[tuple[float, float]]:
    """The ranges that the pieces cover; those that touch or overlap are joined."""
    ranges: list[tuple[float, float]] = []
    for piece in (a.piece for a in answers):
        if ranges and piece.start <= ranges[-1][1] + 1e-6:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], piece.end))
        else:
            ranges.append((piece.start, piece.end))
    return ranges


def _joined(parts: Sequence[_PieceText], notes: list[tuple[float, str]]) -> str:
    """The parts as one text, in which the words of an overlap are written once, without the ends that a cut mangled."""
    for before, part in pairwise(parts):
        if not _trim(before, part):
            start, end = part.answer.piece.start, before.answer.piece.end
            note = f"{clock(start)} to {clock(end)}: two overlapping chunks differ; words may be repeated"
            notes.append((start, note))
    whole = ""
    for part in parts:
        whole = join_texts(whole, part.remaining)
    return whole


def _trim(before: _PieceText, part: _PieceText) -> bool:
    """Trim two neighbours at their seam; False if they overlap without a common run of words."""
    if not (part.answer.piece.overlaps and before.remaining and part.remaining):
        return True
    shared = before.answer.piece.end - part.answer.piece.start
    most = max(4, math.ceil(shared * WORDS_A_SECOND))
    cuts = seam(before.remaining, part.remaining, most)
    if cuts is None:
        return False
    before.end = before.begin + cuts[0]
    part.begin += cuts[1]
    part.begin += len(part.remaining) - len(part.remaining.lstrip())
    return True


def _unexpected_scripts(parts: Sequence[_PieceText], expected: str) -> list[tuple[float, str]]:
    """Warnings for pieces in another script than `expected`, or than that of most of the text."""
    usual = expected or script("".join(part.remaining for part in parts))
    scripts = [(part.answer.piece, script(part.remaining)) for part in parts]
    return [
        (
            piece.start,
            f"{piece}: written in {own} script, not {usual}; the language may be wrong",
        )
        for piece, own in scripts
        if own not in ("", usual)
    ]


def _segments(
    tokenizer: Tokenizer,
    sound: VoiceFeatures,
    first: Sequence[_PieceText],
    second: Sequence[_PieceText],
) -> tuple[tuple[Segment, ...], tuple[Word, ...]]:
    """Segments and words in order of time, without overlaps."""
    speech = speech_ranges(sound)
    starts = np.array([start for start, _ in speech])
    segments: list[Segment] = []
    words: list[Word] = []
    latest = 0.0
    for n, part in enumerate(first):
        source: TimeSource = "estimated" if part.answer.times is None else "aligned"
        timed: list[Timed] = []
        for a, b, start, end in _times(tokenizer, sound, part):
            if part.begin <= a and b <= part.end:
                start, latest = max(start, latest), max(end, start, latest)
                timed.append((a, b, start, latest))
                words.append(Word(part.text[a:b], start, latest, source))
        if not timed:
            continue
        small = part.answer.piece.seconds <= MAX_SEGMENT
        answer = part.answer.answer
        ends = [end - part.offset for _, end in token_spans(tokenizer, answer.tokens)]
        groups = [timed] if small else _grouped(timed, starts)
        own, before = [], groups[0][0][0]
        for group in groups:
            begin, end = group[0][0], group[-1][1]
            # A token belongs to the word of its last character: one that begins with a space to the word after it.
            mine = [n for n, at in enumerate(ends) if before < at <= end]
            logs = tuple(answer.logprobs[n].logprob for n in mine if answer.logprobs)
            own.append(
                Segment(
                    group[0][2],
                    group[-1][3],
                    part.text[begin:end],
                    sum(logs) / len(logs) if logs else None,
                    "window" if small else source,
                    part.answer.temperature,
                    seek=part.answer.piece.start,
                    tokens=tuple(answer.tokens[n] for n in mine),
                    logprobs=logs,
                    silence=silent_share(speech, group[0][2], group[-1][3]),
                )
            )
            before = end
        segments += _translated(tokenizer, sound, own, second[n]) if second else own
    return tuple(segments), tuple(words)


def _times(tokenizer: Tokenizer, sound: VoiceFeatures, part: _PieceText) -> list[Timed]:
    """All words of a piece's text, also those cut at seams, with their times."""
    piece, spans = part.answer.piece, word_spans(part.text)
    if part.answer.times is None:
        times = estimated(sound, piece, [part.text[a:b] for a, b in spans])
        return [(a, b, *time) for (a, b), time in zip(spans, times, strict=True)]
    tokens = token_spans(tokenizer, part.answer.answer.tokens)
    result: list[Timed] = []
    for a, b in spans:
        mine = [
            time
            for (x, y), time in zip(tokens, part.answer.times, strict=True)
            if x - part.offset < b and y - part.offset > a
        ]
        if mine:
            result.append((a, b, piece.start + mine[0][0], piece.start + mine[-1][1]))
    return result


def estimated(
    sound: VoiceFeatures, piece: Piece, words: Sequence[str]
) -> list[tuple[float, float]]:
    """(start, end) in seconds of the words of a piece: a word's share of the voiced time is its share of characters."""
    if not words:
        return []
    sizes = [spoken_length(word) for word in words]
    edges = np.concatenate([[0.0], np.cumsum(sizes)]) / sum(sizes)
    times, over = voiced_shares(sound.voiced, piece.start, piece.end)
    # A word begins where speech resumes after a pause, and ends where it stops before one.
    begins = times[np.searchsorted(over, edges[:-1] + 1e-9, side="right") - 1]
    ends = times[np.minimum(np.searchsorted(over, edges[1:] - 1e-9), len(times) - 1)]
    return [(float(a), float(b)) for a, b in zip(begins, np.maximum(begins, ends), strict=True)]


def _grouped(timed: Sequence[Timed], starts: np.ndarray) -> list[list[Timed]]:
    """Groups of words within one range of speech, at most 10 s long; a word belongs to the range of its middle."""
    groups: list[list[Timed]] = []
    last = -1
    for word in timed:
        group = int(np.searchsorted(starts, (word[2] + word[3]) / 2, side="right"))
        if not groups or last != group or word[3] - groups[-1][0][2] > MAX_SEGMENT:
            groups.append([])
        groups[-1].append(word)
        last = group
    return groups


def _translated(
    tokenizer: Tokenizer, sound: VoiceFeatures, segments: Sequence[Segment], part: _PieceText
) -> list[Segment]:
    """A piece's segments with the words of its translation, assigned by time."""
    timed = [t for t in _times(tokenizer, sound, part) if part.begin <= t[0] and t[1] <= part.end]
    borders = [-math.inf, *(s.start for s in segments[1:]), math.inf]
    result = []
    for segment, (begin, end) in zip(segments, pairwise(borders), strict=True):
        mine = [(a, b) for a, b, x, y in timed if begin <= (x + y) / 2 < end]
        text = part.text[mine[0][0] : mine[-1][1]] if mine else ""
        result.append(replace(segment, translation=text))
    return result


def clock(seconds: float) -> str:
    """12.3 -> "0:12.3", 3723.4 -> "1:02:03.4"."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{front}:{rest // 10:02}.{rest % 10}"
