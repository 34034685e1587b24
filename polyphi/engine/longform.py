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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from polyphi.chat import Audio, Completion, Message, SamplingParams, Transcript
from polyphi.engine.align import align
from polyphi.engine.engine import Engine
from polyphi.engine.transcript import Heard, Piece, join
from polyphi.engine.words import repetition
from polyphi.processing.audio import resampled
from polyphi.processing.media import AudioSource, AudioStream
from polyphi.processing.silence import Sound, listen, quietest, spoken

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


@dataclass(frozen=True)
class Task:
    """What is asked of every piece. `texts` says what its answer is, with `<sep>` between "both"; `script` which
    letters the last of them should have ("" for any). Given `sampling`, answers are taken as they come. `words` asks
    for the times of words, by letters over voiced time or by attention."""

    prompt: str
    texts: Literal["transcript", "translation", "both"] = "transcript"
    script: str = ""
    adapter: str | None = "auto"
    sampling: SamplingParams | None = None
    words: Literal["estimated", "aligned"] | None = None


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


def longest_piece(engine: Engine, task: Task, window: float | None = None) -> float:
    """Seconds that a piece may have: 30 minutes, `window`, or what the context holds beside prompt and answer. Raises
    ValueError where that isn't even a second."""
    if window is not None and not window >= 1:
        raise ValueError(f"a window has at least 1 s, found {window:g}")
    left = engine.context - _prompt(engine, task) - ANSWER - 1
    most = left / (AUDIO_TOKENS + TEXT_TOKENS * (2 if task.texts == "both" else 1))
    if most < 1:
        raise ValueError(
            f"a context of {engine.context} tokens holds no second of audio beside the prompt and an answer of "
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
    """The samples of each piece (in order of time) at 16 or 8 kHz, and the rate; the recording is read once."""
    blocks, rate = resampled(stream, stream.rate)
    source, held, begin, length = iter(blocks), list[np.ndarray](), 0, 0
    for piece in pieces:
        first = round(piece.start * rate)
        # Rounded at both ends, half an hour could be a sample longer.
        last = min(round(piece.end * rate), first + round(LONGEST * rate))
        while True:
            while held and begin + len(held[0]) <= first:
                begin, length = begin + len(held[0]), length - len(held[0])
                held.pop(0)
            if begin + length >= last or (block := next(source, None)) is None:
                break
            held.append(block)
            length += len(block)
        wave = np.concatenate(held or [np.empty(0, np.float32)])[first - begin : last - begin]
        # What was rounded away at the very end: a clip has one sample at least.
        yield (wave if len(wave) else np.zeros(1, np.float32)), rate


def transcribe(
    engine: Engine,
    recordings: Sequence[AudioSource],
    task: Task,
    *,
    window: float | None = None,
    max_seconds: float = LONGEST_RECORDING,
    tell: Callable[[float], None] = lambda seconds: None,
) -> list[Transcript]:
    """A transcript of each recording; their pieces are answered together. `window`: seconds of a piece at most. `tell`
    hears how many seconds of audio have just been finished. Raises ValueError for a recording that can't be read or
    lasts longer than `max_seconds`."""
    limit = longest_piece(engine, task, window)
    streams = [AudioStream(source, max_seconds=max_seconds) for source in recordings]
    sounds = [listen(stream) for stream in streams]
    plans = [cut(sound, limit) for sound in sounds]
    for sound, plan in zip(sounds, plans, strict=True):
        tell(sound.seconds - sum(piece.seconds for piece in plan))
    todo = [Job(i, piece) for i, plan in enumerate(plans) for piece in plan]
    done: list[list[Heard]] = [[] for _ in recordings]
    while todo:
        run = _together(engine, task, todo)
        rest = todo[len(run) :]
        for job, answer in zip(run, _ask(engine, streams, task, run), strict=True):
            if more := _judge(engine, sounds[job.recording], task, job, answer):
                rest += more
                continue
            assert job.best is not None
            done[job.recording].append(job.best)
            tell(job.piece.seconds)
        todo = sorted(rest, key=lambda job: (job.recording, job.piece.start))
    found = []
    for stream, sound, heard in zip(streams, sounds, done, strict=True):
        heard.sort(key=lambda h: h.piece.start)
        if task.words == "aligned":
            heard = _aligned(engine, stream, task, heard)
        tokenizer, words = engine.processor.tokenizer, task.words is not None
        found.append(join(tokenizer, sound, heard, task.texts, words=words, expected=task.script))
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
    return engine.context - _prompt(engine, task) - job.audio_tokens


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
    engine: Engine, streams: Sequence[AudioStream], task: Task, run: Sequence[Job]
) -> list[Completion]:
    """Answers to jobs that are in order of recording and time; a piece is read when its turn comes."""

    def conversations() -> Iterator[list[Message]]:
        for i in sorted({job.recording for job in run}):
            for clip in sections(streams[i], [job.piece for job in run if job.recording == i]):
                yield [Message.user(Audio(clip), task.prompt)]

    samplings = [
        task.sampling
        or SamplingParams(
            max_tokens=_room(engine, task, job),
            temperature=TEMPERATURES[job.tries],
            seed=job.tries,
            logprobs=0,
        )
        for job in run
    ]
    return engine.generate_many(conversations(), sampling=samplings, adapter=task.adapter)


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
