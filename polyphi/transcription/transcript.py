"""Answers to the pieces of a recording -> one `Transcript`: texts sewn together, segments and words with their times.

A time says how it is known (`Segment.source`). A piece of at most 10 s is one segment, and its words were said in it:
"window". Of longer ones only the whole is known like this; its words get their times by attention where that was asked
for ("aligned", align.py), else each has as much of the voiced time as of the letters ("estimated"). How far off both
are stands in docs/transcription.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from polyphi.messages import Completion, Segment, TimeSource, Transcript, Word
from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription.silence import Sound, shares, silences, spoken
from polyphi.transcription.words import (
    certain,
    join_texts,
    script,
    seam,
    size,
    token_spans,
    words_of,
)

SEPARATOR = "<sep>"
"""Between transcript and translation where both were asked for."""
SEGMENT = 10.0  # s of a segment at most
WORDS_A_SECOND = 8.0  # more than quick speakers say
UNTOLD = 0.5  # s left out without a word

Timed = tuple[int, int, float, float]  # characters from and to, seconds from and to


@dataclass(frozen=True)
class Piece:
    """Seconds of a recording heard at once. `overlaps`: it begins before the piece before it ends."""

    start: float
    end: float
    overlaps: bool = False

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{clock(self.start)} to {clock(self.end)}"


@dataclass(frozen=True)
class Heard:
    """The answer that a piece got, what is doubtful about it, and, where it was aligned, the seconds from the piece's
    start that each token covers."""

    piece: Piece
    answer: Completion
    temperature: float = 0.0
    doubts: tuple[str, ...] = ()
    times: tuple[tuple[float, float], ...] | None = None


@dataclass
class _Part:
    """The transcript, or the translation, of a piece: `text`, which begins at `offset` of the answer, and of which
    `begin` to `end` are left after the seams."""

    heard: Heard
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
    def kept(self) -> str:
        return self.text[self.begin : self.end]


def join(
    tokenizer: Tokenizer,
    sound: Sound,
    heard: Sequence[Heard],
    texts: str = "transcript",
    *,
    words: bool = False,
    expected: str = "",
) -> Transcript:
    """The transcript of a recording from the answers to its pieces, in order of time. `texts` says what an answer is:
    "transcript", "translation" or "both". `expected`: the script that the last of them should be written in."""
    notes = [(h.piece.start, f"{h.piece}: {doubt}") for h in heard for doubt in h.doubts]
    for start, end in silences(_covered(heard), sound.seconds, UNTOLD):
        notes.append(
            (start, f"{clock(start)} to {clock(end)}: silence, or noise without a voice, left out")
        )
    first, second = [], []
    for h in heard:
        one, other_one = _parts(h, texts)
        first.append(one)
        second.append(other_one)
        if texts == "both" and SEPARATOR not in h.answer.text:
            notes.append(
                (
                    h.piece.start,
                    f"{h.piece}: the model wrote no {SEPARATOR}, so its answer holds no separate translation",
                )
            )
    whole, other = _sewn(first, notes), _sewn(second, notes)
    notes += _strange(second if texts == "both" else first, expected)
    segments, timed = _segments(tokenizer, sound, first, second if texts == "both" else ())
    told = tuple(text for _, text in sorted(notes, key=lambda note: note[0]))
    said_words = timed if words else ()
    if texts == "translation":
        return Transcript("", sound.seconds, whole, told, segments, said_words)
    if texts == "both" and (other or not heard):
        return Transcript(whole, sound.seconds, other, told, segments, said_words)
    return Transcript(whole, sound.seconds, None, told, segments, said_words)


class Growing:
    """The text of a recording while its pieces are answered: what can't change any more, whatever comes. It is the
    transcript, or the translation where one was asked for; all of it joined is what `join` makes.

    >>> growing = Growing("transcript")
    >>> growing.add(heard, following)                # the text that is certain now, often not the last words
    """

    def __init__(self, texts: str) -> None:
        self._texts = texts
        self._whole = ""  # of all parts but the last
        self._last: _Part | None = None
        self._told = 0

    def add(self, heard: Heard, following: Piece | None) -> str:
        """What the next answer in order of time makes certain. `following`: the piece after it, None behind the last
        one. Where that begins before this one ends, the last words wait for it."""
        part = _parts(heard, self._texts)[1 if self._texts == "both" else 0]
        if self._last is not None:
            _sew(self._last, part)
            self._whole = join_texts(self._whole, self._last.kept)
        self._last = part
        sure = part.kept
        if following is not None and following.overlaps:
            sure = certain(sure)
        text = join_texts(self._whole, sure)
        news, self._told = text[self._told :], len(text)
        return news


def _parts(h: Heard, texts: str) -> tuple[_Part, _Part]:
    """What an answer holds: its text, and for "both" the translation behind it."""
    said, found, rest = h.answer.text, "", ""
    if texts == "both":
        said, found, rest = said.partition(SEPARATOR)
    return _Part(h, said, 0), _Part(h, rest, len(said) + len(found))


def _covered(heard: Sequence[Heard]) -> list[tuple[float, float]]:
    """What the pieces cover; those that touch or overlap are one."""
    found: list[tuple[float, float]] = []
    for piece in (h.piece for h in heard):
        if found and piece.start <= found[-1][1] + 1e-6:
            found[-1] = (found[-1][0], max(found[-1][1], piece.end))
        else:
            found.append((piece.start, piece.end))
    return found


def _sewn(parts: Sequence[_Part], notes: list[tuple[float, str]]) -> str:
    """The parts as one text: what two of them heard stands in the first alone, without the ends that a cut mangled."""
    for before, part in pairwise(parts):
        if not _sew(before, part):
            start, end = part.heard.piece.start, before.heard.piece.end
            told = f"{clock(start)} to {clock(end)}: heard differently by two pieces; words may stand twice"
            notes.append((start, told))
    whole = ""
    for part in parts:
        whole = join_texts(whole, part.kept)
    return whole


def _sew(before: _Part, part: _Part) -> bool:
    """Take from two neighbours what both heard; False where they don't agree."""
    if not (part.heard.piece.overlaps and before.kept and part.kept):
        return True
    shared = before.heard.piece.end - part.heard.piece.start
    found = seam(before.kept, part.kept, max(4, math.ceil(shared * WORDS_A_SECOND)))
    if found is None:
        return False
    before.end = before.begin + found[0]
    part.begin += found[1]
    part.begin += len(part.kept) - len(part.kept.lstrip())
    return True


def _strange(parts: Sequence[_Part], expected: str) -> list[tuple[float, str]]:
    """Pieces written in another script than was asked for, or than most of the text is."""
    usual = expected or script("".join(part.kept for part in parts))
    scripts = [(part.heard.piece, script(part.kept)) for part in parts]
    return [
        (
            piece.start,
            f"{piece}: written in {found} letters, not {usual}; the language may be wrong",
        )
        for piece, found in scripts
        if found not in ("", usual)
    ]


def _segments(
    tokenizer: Tokenizer, sound: Sound, first: Sequence[_Part], second: Sequence[_Part]
) -> tuple[tuple[Segment, ...], tuple[Word, ...]]:
    """Segments and words in order of time, none before the one before it ends."""
    starts = np.array([start for start, _ in spoken(sound)])
    segments: list[Segment] = []
    words: list[Word] = []
    latest = 0.0
    for n, part in enumerate(first):
        source: TimeSource = "estimated" if part.heard.times is None else "aligned"
        timed: list[Timed] = []
        for a, b, start, end in _times(tokenizer, sound, part):
            if part.begin <= a and b <= part.end:
                start, latest = max(start, latest), max(end, start, latest)
                timed.append((a, b, start, latest))
                words.append(Word(part.text[a:b], start, latest, source))
        if not timed:
            continue
        small = part.heard.piece.seconds <= SEGMENT
        answer = part.heard.answer
        ends = [end - part.offset for _, end in token_spans(tokenizer, answer.tokens)]
        groups = [timed] if small else _grouped(timed, starts)
        made, before = [], groups[0][0][0]
        for group in groups:
            begin, end = group[0][0], group[-1][1]
            # A token goes with its last letter: what begins with a space belongs to the word behind it.
            mine = [n for n, at in enumerate(ends) if before < at <= end]
            logs = tuple(answer.logprobs[n].logprob for n in mine if answer.logprobs)
            made.append(
                Segment(
                    group[0][2],
                    group[-1][3],
                    part.text[begin:end],
                    sum(logs) / len(logs) if logs else None,
                    "window" if small else source,
                    part.heard.temperature,
                    seek=part.heard.piece.start,
                    tokens=tuple(answer.tokens[n] for n in mine),
                    logprobs=logs,
                )
            )
            before = end
        segments += _translated(tokenizer, sound, made, second[n]) if second else made
    return tuple(segments), tuple(words)


def _times(tokenizer: Tokenizer, sound: Sound, part: _Part) -> list[Timed]:
    """The words of a part, before any seam, with their times."""
    piece, spans = part.heard.piece, words_of(part.text)
    if part.heard.times is None:
        times = estimated(sound, piece, [part.text[a:b] for a, b in spans])
        return [(a, b, *time) for (a, b), time in zip(spans, times, strict=True)]
    tokens = token_spans(tokenizer, part.heard.answer.tokens)
    found: list[Timed] = []
    for a, b in spans:
        mine = [
            time
            for (x, y), time in zip(tokens, part.heard.times, strict=True)
            if x - part.offset < b and y - part.offset > a
        ]
        if mine:
            found.append((a, b, piece.start + mine[0][0], piece.start + mine[-1][1]))
    return found


def estimated(sound: Sound, piece: Piece, words: Sequence[str]) -> list[tuple[float, float]]:
    """(start, end) in seconds of the words said in a piece: each takes as much of the voiced time as of the letters."""
    if not words:
        return []
    sizes = [size(word) for word in words]
    edges = np.concatenate([[0.0], np.cumsum(sizes)]) / sum(sizes)
    times, over = shares(sound.voiced, piece.start, piece.end)
    # A word begins where voice goes on after a pause, and ends where it stopped before one.
    begins = times[np.searchsorted(over, edges[:-1] + 1e-9, side="right") - 1]
    ends = times[np.minimum(np.searchsorted(over, edges[1:] - 1e-9), len(times) - 1)]
    return [(float(a), float(b)) for a, b in zip(begins, np.maximum(begins, ends), strict=True)]


def _grouped(timed: Sequence[Timed], starts: np.ndarray) -> list[list[Timed]]:
    """Words of one stretch of speech together, 10 s at most; a word belongs where its middle is."""
    groups: list[list[Timed]] = []
    last = -1
    for word in timed:
        stretch = int(np.searchsorted(starts, (word[2] + word[3]) / 2, side="right"))
        if not groups or last != stretch or word[3] - groups[-1][0][2] > SEGMENT:
            groups.append([])
        groups[-1].append(word)
        last = stretch
    return groups


def _translated(
    tokenizer: Tokenizer, sound: Sound, segments: Sequence[Segment], part: _Part
) -> list[Segment]:
    """A piece's segments with their shares of its translation, by time."""
    timed = [t for t in _times(tokenizer, sound, part) if part.begin <= t[0] and t[1] <= part.end]
    borders = [-math.inf, *(s.start for s in segments[1:]), math.inf]
    found = []
    for segment, (begin, end) in zip(segments, pairwise(borders), strict=True):
        mine = [(a, b) for a, b, x, y in timed if begin <= (x + y) / 2 < end]
        text = part.text[mine[0][0] : mine[-1][1]] if mine else ""
        found.append(replace(segment, translation=text))
    return found


def clock(seconds: float) -> str:
    """12.3 -> "0:12.3", 3723.4 -> "1:02:03.4"."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{front}:{rest // 10:02}.{rest % 10}"
