"""Recordings of any length: planned in tokens, cut at quiet points, answered, and asked again where an answer fails.

    listen      once from beginning to end: levels, silences, seconds          (processing/silence.py)
    cut         up to 30 minutes at a time, less where the context holds less; 10 s of silence are left out
    answer      several pieces together; answers that loop or break off are asked for again
    join        where pieces overlap, the longest run of words that both have is written once     (transcript.py)

Nothing gets lost unsaid: what was left out, cut off or doubtful stands in `Transcript.warnings`, with its time. Of a
recording only its levels and the pieces being answered are in memory.

An answer is asked for again where it repeats itself (a run of the same words, or zlib shrinks 1,000 bytes of it more
than 3.5-fold): of a piece longer than a minute in two halves, of a shorter one at temperatures 0.2, 0.4, 0.6 and 0.8.
One that breaks off for want of room gets twice the room, then halves. Numbers are ours where no source is named.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import NOBODY, Caller
from polyphi.messages import (
    LANGUAGES,
    TRANSCRIBE,
    TRANSCRIBE_AND_TRANSLATE,
    TRANSLATE,
    Audio,
    Completion,
    Message,
    SamplingParams,
    Transcript,
)
from polyphi.processing.audio import resampled
from polyphi.processing.media import AudioSource, AudioStream, MediaError
from polyphi.transcription.align import align
from polyphi.transcription.silence import Sound, listen, quietest, spoken
from polyphi.transcription.transcript import Growing, Heard, Piece, join
from polyphi.transcription.words import repetition

LONGEST = 1800.0  # s heard in one piece (report 2.2.1)
LONGEST_RECORDING = 24 * 3600.0  # s
AUDIO_TOKENS = 12.5  # a second
TEXT_TOKENS = 8.0  # room for what is said in a second; quick speakers need about five
ANSWER = 64  # tokens of room beside
SEARCH = 30.0  # s before the limit in which the quietest point is looked for, half of short pieces at most
OVERLAP = (
    2.0  # s that two pieces share where somebody speaks at the cut, a tenth of short pieces at most
)
TAIL = 0.5  # s; no piece is shorter, unless the recording is
SKIPPED = 10.0  # s of silence that aren't sent to the model,
EDGE = 0.5  # but for so much at each side
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8)
HALVED = 60.0  # s above which a piece whose answer loops is heard in halves
SHORTEST_HALF = 5.0  # s
TOGETHER = 16_384  # tokens of pieces answered together; a single one may have more
FOLLOWED = 8  # pieces answered together at most while somebody follows the text


@dataclass(frozen=True)
class Task:
    """What is asked of every piece. `texts` says what its answer is, with `<sep>` between "both"; `script` which
    letters the last of them should have ("" for any). Given `sampling`, answers are taken as they come; its
    `max_tokens` count for each piece, which has room for 8 tokens a second at most. `words` asks for the times of
    words, by letters over voiced time or by attention."""

    prompt: str
    texts: Literal["transcript", "translation", "both"] = "transcript"
    script: str = ""
    adapter: str | None = "auto"
    sampling: SamplingParams | None = None
    words: Literal["estimated", "aligned"] | None = None


def transcription(to: str | None = None, cot: bool = False) -> Task:
    """What to ask for the words of a recording, or for their translation `to` a language (a code or a name), written
    behind the transcript with `cot`; prompts are the published ones. Raises ValueError for a language that the model
    wasn't trained for."""
    if to is None:
        if cot:
            raise ValueError(
                "cot=True writes a transcript and then a translation; say which language with to="
            )
        return Task(TRANSCRIBE)
    name = language(to)
    script = "Han or kana" if name in ("Chinese", "Japanese") else "Latin"
    if cot:
        return Task(TRANSCRIBE_AND_TRANSLATE.format(name), "both", script)
    return Task(TRANSLATE.format(name), "translation", script)


def language(called: str) -> str:
    """The name of a language from its code ("de") or its name in any case. Raises ValueError for one that the model
    wasn't trained for."""
    names = {name.lower(): name for name in LANGUAGES.values()}
    if name := LANGUAGES.get(called.lower()) or names.get(called.lower()):
        return name
    known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
    raise ValueError(
        f"unknown language {called[:40]!r}; the model's languages of speech are {known}"
    )


class Recording(AudioStream):
    """A recording that can be given up: `Stopped` comes out instead of its next block once `stop` is set. Raises as
    `AudioStream` does, and where the header already says that it is too long."""

    def __init__(self, source: AudioSource, max_seconds: float, stop: threading.Event) -> None:
        super().__init__(source, max_seconds=max_seconds)
        self._stop = stop
        # Some headers tell no length, and those of compressed formats are only nearly right.
        if max_seconds * 1.05 < (told := self.announced / self.rate) and self.announced < 2**60:
            raise MediaError(
                f"{self.name}: a clip may last {max_seconds:g} s, found a header that says {told:.1f} s; cut it first",
                "size",
            )

    def __iter__(self) -> Iterator[Float[np.ndarray, " n"]]:
        for block in super().__iter__():
            if self._stop.is_set():
                raise Stopped
            yield block


@dataclass
class Job:
    """A piece to be answered: which recording it is of, how often it was asked for, and the best answer so far."""

    recording: int
    piece: Piece
    room: int = 1
    tries: int = 0
    best: Heard | None = None

    @property
    def audio_tokens(self) -> int:
        return math.ceil(self.piece.seconds * AUDIO_TOKENS) + 1


@dataclass
class Cost:
    """What the answers to a recording's pieces took, all together."""

    adapter: str | None = None
    prompt: int = 0
    audio: int = 0
    answers: int = 0

    def add(self, answer: Completion) -> None:
        self.adapter = answer.adapter
        self.prompt += answer.prompt_tokens
        self.audio += answer.audio_tokens
        self.answers += len(answer.tokens)


def longest_piece(engine: Engine, task: Task, window: float | None = None) -> float:
    """Seconds that a piece may have: 30 minutes, `window`, or what the context holds beside prompt and answer. Raises
    ValueError where that isn't even a second."""
    if window is not None and not window >= 1:
        raise ValueError(f"a window has at least 1 s, found {window:g}")
    left = engine.longest - _prompt(engine, task) - ANSWER - 1
    most = left / (AUDIO_TOKENS + TEXT_TOKENS * (2 if task.texts == "both" else 1))
    if most < 1:
        raise ValueError(
            f"a context of {engine.longest} tokens holds no second of audio beside the prompt and an answer of "
            f"{ANSWER}; transcription needs a longer one"
        )
    return min(most, LONGEST, window or LONGEST)


def cut(sound: Sound, limit: float) -> list[Piece]:
    """Pieces of at most `limit` seconds that hold everything but silences of 10 s and more. A cut lies at the quietest
    point of the last 30 s before the limit; where somebody speaks there, the next piece begins 2 s earlier."""
    pieces: list[Piece] = []
    for first, last in spoken(sound, SKIPPED):
        start = 0.0 if first < SKIPPED else first - EDGE
        end = sound.seconds if sound.seconds - last < SKIPPED else last + EDGE
        overlaps = False
        while end - start > limit:
            latest = start + limit - min(TAIL, limit / 10)
            at, spoken_at = _quiet_point(sound, latest - min(SEARCH, limit / 2), latest)
            pieces.append(Piece(start, at, overlaps))
            overlaps = spoken_at
            start = at - (min(OVERLAP, limit / 10) if overlaps else 0.0)
        pieces.append(Piece(start, end, overlaps))
    return pieces


def halves(sound: Sound, piece: Piece) -> tuple[Piece, Piece]:
    """A piece as two, cut at the quietest point of its middle third."""
    third = piece.seconds / 3
    at, overlaps = _quiet_point(sound, piece.start + third, piece.end - third)
    start = at - (min(OVERLAP, piece.seconds / 10) if overlaps else 0.0)
    return Piece(piece.start, at, piece.overlaps), Piece(start, piece.end, overlaps)


def _quiet_point(sound: Sound, start: float, end: float) -> tuple[float, bool]:
    """(where to cut between `start` and `end`, whether somebody speaks there): the middle of the longest pause, else
    the quietest 0.2 s."""
    inside = [(max(a, start), min(b, end)) for a, b in sound.pauses if a < end and b > start]
    if inside:
        a, b = max(inside, key=lambda pause: pause[1] - pause[0])
        return (a + b) / 2, False
    return quietest(sound, start, end), True


def sections(
    stream: AudioStream, pieces: Iterable[Piece]
) -> Iterator[tuple[Float[np.ndarray, " n"], int]]:
    """The samples of each piece at 16 or 8 kHz, and the rate."""
    reader = Reader(stream)
    return (reader.read(piece) for piece in pieces)


class Reader:
    """The samples of pieces of a recording, which is read once where they are asked for in order of time, and anew
    where one begins before what is still held."""

    def __init__(self, stream: AudioStream) -> None:
        self._stream = stream
        self._rewind()

    def _rewind(self) -> None:
        blocks, self.rate = resampled(self._stream, self._stream.rate)
        self._source = iter(blocks)
        self._held = list[np.ndarray]()
        self._begin = self._length = 0  # samples before what is held, and of it

    def read(self, piece: Piece) -> tuple[Float[np.ndarray, " n"], int]:
        """Samples of a piece at 16 or 8 kHz, and the rate."""
        first = round(piece.start * self.rate)
        # Rounded at both ends, half an hour could be a sample longer.
        last = min(round(piece.end * self.rate), first + round(LONGEST * self.rate))
        if first < self._begin:
            self._rewind()
        while True:
            self._drop(first)
            end = self._begin + self._length
            if end >= last or (block := next(self._source, None)) is None:
                break
            self._held.append(block)
            self._length += len(block)
        held = np.concatenate(self._held or [np.empty(0, np.float32)])
        wave = held[first - self._begin : last - self._begin]
        self._drop(last - round(OVERLAP * self.rate))  # where the next one begins at the earliest
        # What was rounded away at the very end: a clip has one sample at least.
        return (wave if len(wave) else np.zeros(1, np.float32)), self.rate

    def _drop(self, before: int) -> None:
        """Lets go of blocks that end before a sample."""
        while self._held and self._begin + len(self._held[0]) <= before:
            gone = len(self._held.pop(0))
            self._begin, self._length = self._begin + gone, self._length - gone


def transcribe(
    engine: Engine,
    recordings: Sequence[AudioSource],
    task: Task,
    *,
    window: float | None = None,
    max_seconds: float = LONGEST_RECORDING,
    tell: Callable[[float], None] = lambda seconds: None,
    follow: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    caller: Caller = NOBODY,
) -> list[Transcript]:
    """A transcript of each recording; their pieces are answered together. `window`: seconds of a piece at most.

    `tell` hears how many seconds of audio have just been finished, first when a recording has been listened to (what is
    left out) and then of each piece. `follow` hears the text of a single recording (its translation where one was asked
    for) as it becomes final, piece by piece; joined it is the very text of the transcript. `caller` as of
    `Engine.generate_many`. Raises `Stopped` soon after `stop` is set: at the next block that is read or the engine's
    next step. Raises ValueError for a recording that can't be read or lasts longer than `max_seconds`."""
    assert follow is None or len(recordings) == 1, "the texts of several recordings would mix"
    limit = longest_piece(engine, task, window)
    stop = stop or threading.Event()
    streams = [Recording(source, max_seconds, stop) for source in recordings]
    sounds = [listen(stream) for stream in streams]
    plans = [cut(sound, limit) for sound in sounds]
    for sound, plan in zip(sounds, plans, strict=True):
        tell(sound.seconds - sum(piece.seconds for piece in plan))
    todo = [Job(i, piece) for i, plan in enumerate(plans) for piece in plan]
    readers = [Reader(stream) for stream in streams]
    done: list[list[Heard]] = [[] for _ in recordings]
    cost = [Cost() for _ in recordings]
    growing, followed = Growing(task.texts), 0
    while todo:
        run = _together(engine, task, todo)
        if follow is not None:
            run = run[: min(FOLLOWED, len(done[0]) + 1)]
        rest = todo[len(run) :]
        for job, answer in zip(run, _ask(engine, readers, task, run, stop, caller), strict=True):
            cost[job.recording].add(answer)
            if more := _judge(engine, sounds[job.recording], task, job, answer):
                rest += more
                continue
            assert job.best is not None
            done[job.recording].append(job.best)
            tell(job.piece.seconds)
        todo = sorted(rest, key=lambda job: (job.recording, job.piece.start))
        if follow is not None:
            # Nothing can come any more before the first piece that is still to be answered.
            heard = sorted(done[0], key=lambda h: h.piece.start)
            pieces = [h.piece for h in heard] + [job.piece for job in todo]
            pieces.sort(key=lambda piece: piece.start)
            while followed < len(heard) and heard[followed].piece == pieces[followed]:
                following = pieces[followed + 1] if followed + 1 < len(pieces) else None
                if news := growing.add(heard[followed], following):
                    follow(news)
                followed += 1
    found = []
    for stream, sound, heard, spent in zip(streams, sounds, done, cost, strict=True):
        heard.sort(key=lambda h: h.piece.start)
        if task.words == "aligned":
            heard = _aligned(engine, stream, task, heard)
        tokenizer, words = engine.processor.tokenizer, task.words is not None
        made = join(tokenizer, sound, heard, task.texts, words=words, expected=task.script)
        found.append(
            replace(
                made,
                adapter=spent.adapter,
                prompt_tokens=spent.prompt,
                audio_tokens=spent.audio,
                answer_tokens=spent.answers,
            )
        )
    return found


def _aligned(
    engine: Engine, stream: AudioStream, task: Task, heard: Sequence[Heard]
) -> list[Heard]:
    """Answers with the times of their tokens; the recording is read once more."""
    found = []
    for h, clip in zip(heard, sections(stream, [h.piece for h in heard]), strict=True):
        row = engine.row([Message.user(Audio(clip), task.prompt)], adapter=task.adapter)
        found.append(replace(h, times=tuple(align(engine.model, row, h.answer.tokens))))
    return found


def _prompt(engine: Engine, task: Task) -> int:
    """Tokens of the prompt without its audio."""
    return engine.processor.count([Message.user(task.prompt)]).total


def _left(engine: Engine, task: Task, job: Job) -> int:
    """Tokens that the context holds beside prompt and audio."""
    return engine.longest - _prompt(engine, task) - job.audio_tokens


def _room(engine: Engine, task: Task, job: Job) -> int:
    """Tokens that the answer may have."""
    texts = 2 if task.texts == "both" else 1
    wanted = job.room * (ANSWER + math.ceil(job.piece.seconds * TEXT_TOKENS * texts))
    return min(wanted, _left(engine, task, job))


def _together(engine: Engine, task: Task, todo: Sequence[Job]) -> list[Job]:
    """The first jobs that go together, at least one."""
    total, run = 0, list[Job]()
    for job in todo:
        total += job.audio_tokens + _room(engine, task, job)
        if run and total > TOGETHER:
            break
        run.append(job)
    return run


def _ask(
    engine: Engine,
    readers: Sequence[Reader],
    task: Task,
    run: Sequence[Job],
    stop: threading.Event,
    caller: Caller,
) -> list[Completion]:
    """Answers to jobs that are in order of recording and time; a piece is read when its turn comes."""

    def conversations() -> Iterator[list[Message]]:
        for job in run:
            yield [Message.user(Audio(readers[job.recording].read(job.piece)), task.prompt)]

    def sampling(job: Job) -> SamplingParams:
        if task.sampling is not None:
            most = min(task.sampling.max_tokens, _room(engine, task, job))
            return replace(task.sampling, max_tokens=most)
        return SamplingParams(
            max_tokens=_room(engine, task, job),
            temperature=TEMPERATURES[job.tries],
            seed=job.tries,
            logprobs=0,
        )

    return engine.generate_many(
        conversations(),
        sampling=[sampling(job) for job in run],
        adapter=task.adapter,
        stop=stop,
        caller=caller,
    )


def _judge(engine: Engine, sound: Sound, task: Task, job: Job, answer: Completion) -> list[Job]:
    """What must be asked for instead; nothing where the job's best answer is to be taken."""
    loops, broken = repetition(answer.text), answer.finish_reason == "length"
    temperature = task.sampling.temperature if task.sampling else TEMPERATURES[job.tries]
    if job.best is None or loops < repetition(job.best.answer.text):
        job.best = Heard(job.piece, answer, temperature)
    if task.sampling is None:
        if loops and job.piece.seconds <= HALVED and job.tries + 1 < len(TEMPERATURES):
            job.tries += 1
            return [job]
        more = _room(engine, task, job) < _left(engine, task, job)
        if broken and not loops and job.room == 1 and more:
            job.room, job.best = 2, None
            return [job]
        if (loops or broken) and job.piece.seconds > (HALVED if loops else 2 * SHORTEST_HALF):
            return [Job(job.recording, piece) for piece in halves(sound, job.piece)]
    taken, doubts = job.best.answer, []
    if repetition(taken.text):
        tried = "" if task.sampling else f" at every temperature from 0 to {TEMPERATURES[-1]}"
        doubts.append(f"the answer repeats itself{tried}; what was said may be missing")
    if taken.finish_reason == "length":
        doubts.append(
            f"the answer was cut after {len(taken.tokens)} tokens; the end may be missing"
        )
    job.best = Heard(job.piece, taken, job.best.temperature, tuple(doubts))
    return []
