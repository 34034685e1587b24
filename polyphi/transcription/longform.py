"""Transcription of recordings of any length: cut at quiet points, transcribed in pieces, with retries, and joined.

    measure     reads the recording once: levels, silences, seconds                (vad.py)
    cut         pieces of up to `max_audio_seconds` (30 minutes), or as the context allows; silences of 10 s and more
                are left out
    generate    several pieces in one batch; pieces whose answers loop or are truncated are retried
    join        the longest common run of words of overlapping pieces is written once     (transcript.py)

`Transcript.warnings` lists all audio that was left out, and truncated or doubtful text, with its time. Only a
recording's levels and the pieces of the current batch are in memory.

A piece is retried if its answer repeats itself (a run of the same words, or zlib compresses 1,000 bytes of it more than
3.5-fold): a piece longer than a minute in two halves, a shorter one at temperatures 0.2, 0.4, 0.6 and 0.8. A truncated
answer gets twice the tokens, then the piece is halved. Numbers are ours where no source is named.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import NOBODY, Client
from polyphi.media.media import AudioStream, MediaError
from polyphi.processing.audio import RATE, nbytes, resampled
from polyphi.runtime.fork_server import ForkServer
from polyphi.text.quantity import quantity
from polyphi.transcription.align import align
from polyphi.transcription.transcript import Piece, PieceAnswer, StreamedText, join
from polyphi.transcription.vad import VoiceFeatures, measure, quietest_point, speech_ranges
from polyphi.transcription.words import repetition
from polyphi.types.completion import Completion
from polyphi.types.media_sources import AudioSource
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import (
    LONGEST_RECORDING,
    TRANSCRIBE,
    TRANSCRIBE_AND_TRANSLATE,
    TRANSLATE,
    Transcript,
    language,
)

AUDIO_TOKENS = 12.5  # a second
TEXT_TOKENS = 8.0  # token budget of a second of speech; fast speakers need about five
EXTRA_TOKENS = 64  # further tokens of an answer's budget
CUT_SEARCH = 30.0  # s before the limit that are searched for the quietest point, at most half of a short piece
OVERLAP = 2.0  # s shared by two pieces if the cut is in speech, at most a tenth of a short piece
MIN_PIECE = 0.5  # s; the shortest piece, unless the recording is shorter
MAX_SILENCE = 10.0  # s; longer silences are not sent to the model,
SILENCE_EDGE = 0.5  # except so much at each side
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8)
MIN_SPLIT = 60.0  # s above which a piece whose answer loops is split in halves
MIN_HALF = 5.0  # s
BATCH_TOKENS = 16_384  # of the pieces of a batch; a single piece may have more
MAX_STREAMED_BATCH = 8  # pieces of a batch while the text is streamed


@dataclass(frozen=True)
class Task:
    """The request for every piece. `texts`: the content of an answer, with `<sep>` between "both"; `script`: the
    expected script of the last text ("" for any). `temperatures`: of the first try and of each retry, with `seed` and
    the following ones. With `sampling` there are no retries; its `max_tokens` apply to each piece, with a budget of at
    most 8 tokens a second. `words`: how to compute the times of words, by characters over voiced time or by attention;
    None for none."""

    prompt: str
    texts: Literal["transcript", "translation", "both"] = "transcript"
    script: str = ""
    adapter: str | None = "auto"
    sampling: SamplingParams | None = None
    words: Literal["estimated", "aligned"] | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    seed: int = 0


def transcription(to: str | None = None, cot: bool = False) -> Task:
    """The task of transcription, or of translation `to` a language (a code or a name), after the transcript with `cot`;
    prompts are the published ones. Raises ValueError for a language that the model wasn't trained for."""
    if to is None:
        if cot:
            raise ValueError(
                "cot=True writes a transcript and then a translation; give its language with to="
            )
        return Task(TRANSCRIBE)
    name = language(to)
    script = "Han or kana" if name in ("Chinese", "Japanese") else "Latin"
    if cot:
        return Task(TRANSCRIBE_AND_TRANSLATE.format(name), "both", script)
    return Task(TRANSLATE.format(name), "translation", script)


class StoppableStream(AudioStream):
    """A stream that raises `Stopped` instead of returning its next block once `stop` is set. Raises as `AudioStream`
    does, and if the header states that it is too long."""

    def __init__(
        self,
        source: AudioSource,
        max_seconds: float,
        stop: threading.Event,
        decoders: ForkServer | None = None,
    ) -> None:
        self._stopped = stop
        with self._ending():
            super().__init__(source, max_seconds=max_seconds, stop=stop.is_set, decoders=decoders)
        self.check_announced()

    def __iter__(self) -> Iterator[Float[np.ndarray, " n"]]:
        with self._ending():
            for block in super().__iter__():
                if self._stopped.is_set():
                    raise Stopped
                yield block

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Raise `Stopped` for an error after `stop` is set."""
        try:
            yield
        except MediaError:
            if self._stopped.is_set():
                raise Stopped from None
            raise


@dataclass
class PieceJob:
    """A piece to be transcribed: the index of its recording, the factor of its answer's budget, the number of retries,
    and the best answer so far."""

    recording: int
    piece: Piece
    budget_factor: int = 1
    tries: int = 0
    best: PieceAnswer | None = None

    @property
    def audio_tokens(self) -> int:
        return math.ceil(self.piece.seconds * AUDIO_TOKENS) + 1


@dataclass
class Usage:
    """Token counts of all answers to a recording's pieces."""

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
    """Most seconds of a piece: what one audio clip may last (30 minutes by default), `window`, or what fits in the
    context with prompt and answer. Raises ValueError if that is less than a second."""
    if window is not None and not window >= 1:
        raise ValueError(f"a window has at least 1 s, found {window:g} s")
    available = engine.longest - _prompt_tokens(engine, task) - EXTRA_TOKENS - 1
    most = available / (AUDIO_TOKENS + TEXT_TOKENS * (2 if task.texts == "both" else 1))
    if most < 1:
        raise ValueError(
            f"a context of {engine.longest} tokens is too short for a second of audio with the prompt and an answer "
            f"of {EXTRA_TOKENS} tokens; load the model with a longer one"
        )
    return min(most, engine.processor.caps.audio_seconds, window or math.inf)


def cut(sound: VoiceFeatures, limit: float) -> list[Piece]:
    """Pieces of at most `limit` seconds that cover the recording except silences of 10 s and more. Cuts are at the
    quietest point of the last 30 s before the limit; after a cut in speech the next piece starts 2 s earlier."""
    pieces: list[Piece] = []
    for first, last in speech_ranges(sound, MAX_SILENCE):
        start = 0.0 if first < MAX_SILENCE else first - SILENCE_EDGE
        end = sound.seconds if sound.seconds - last < MAX_SILENCE else last + SILENCE_EDGE
        overlaps = False
        while end - start > limit:
            latest = start + limit - min(MIN_PIECE, limit / 10)
            at, in_speech = cut_point(sound, latest - min(CUT_SEARCH, limit / 2), latest)
            pieces.append(Piece(start, at, overlaps))
            overlaps = in_speech
            start = at - (min(OVERLAP, limit / 10) if overlaps else 0.0)
        pieces.append(Piece(start, end, overlaps))
    return pieces


def covered(pieces: Iterable[Piece]) -> float:
    """The seconds in any of the pieces, which are in order of time and may overlap."""
    total, end = 0.0, 0.0
    for piece in pieces:
        total += max(0.0, piece.end - max(piece.start, end))
        end = max(end, piece.end)
    return total


def halves(sound: VoiceFeatures, piece: Piece) -> tuple[Piece, Piece]:
    """The two halves of a piece, cut at the quietest point of its middle third."""
    third = piece.seconds / 3
    at, overlaps = cut_point(sound, piece.start + third, piece.end - third)
    start = at - (min(OVERLAP, piece.seconds / 10) if overlaps else 0.0)
    return Piece(piece.start, at, piece.overlaps), Piece(start, piece.end, overlaps)


def cut_point(sound: VoiceFeatures, start: float, end: float) -> tuple[float, bool]:
    """(the best cut between `start` and `end`, whether it is in speech): the middle of the longest pause, or without
    pauses of the quietest 0.2 s."""
    inside = [(max(a, start), min(b, end)) for a, b in sound.pauses if a < end and b > start]
    if inside:
        a, b = max(inside, key=lambda pause: pause[1] - pause[0])
        return (a + b) / 2, False
    return quietest_point(sound, start, end), True


def sections(
    stream: AudioStream, pieces: Iterable[Piece], most: float
) -> Iterator[tuple[Float[np.ndarray, " n"], int]]:
    """The samples of each piece at 16 or 8 kHz, at most `most` seconds, and the rate."""
    reader = Reader(stream, most)
    return (reader.read(piece) for piece in pieces)


class Reader:
    """Reads the samples of pieces of a recording, at most `most` seconds each: once if pieces come in order of time,
    and again from the start for a piece that begins before the buffer."""

    def __init__(self, stream: AudioStream, most: float) -> None:
        self._stream, self._most = stream, most
        self._rewind()

    def _rewind(self) -> None:
        blocks, self.rate = resampled(self._stream, self._stream.rate)
        self._longest = math.floor(self._most * self.rate)
        self._source = iter(blocks)
        self._buffer = list[np.ndarray]()
        self._begin = self._length = 0  # samples before the buffer, and in it

    def read(self, piece: Piece) -> tuple[Float[np.ndarray, " n"], int]:
        """Samples of a piece at 16 or 8 kHz, and the rate."""
        first = round(piece.start * self.rate)
        # Rounded at both ends, a piece could be a sample longer than a clip may be.
        last = min(round(piece.end * self.rate), first + self._longest)
        if first < self._begin:
            self._rewind()
        while True:
            self._drop(first)
            end = self._begin + self._length
            if end >= last or (block := next(self._source, None)) is None:
                break
            self._buffer.append(block)
            self._length += len(block)
        buffer = np.concatenate(self._buffer or [np.empty(0, np.float32)])
        wave = buffer[first - self._begin : last - self._begin]
        self._drop(last - round(OVERLAP * self.rate))  # the earliest start of the next piece
        # Rounding may leave nothing at the very end: a clip has at least one sample.
        return (wave if len(wave) else np.zeros(1, np.float32)), self.rate

    def _drop(self, before: int) -> None:
        """Drop buffered blocks that end before the sample `before`."""
        while self._buffer and self._begin + len(self._buffer[0]) <= before:
            count = len(self._buffer.pop(0))
            self._begin, self._length = self._begin + count, self._length - count


def transcribe(
    engine: Engine,
    recordings: Sequence[AudioSource],
    task: Task,
    *,
    window: float | None = None,
    max_seconds: float = LONGEST_RECORDING,
    on_progress: Callable[[float], None] = lambda seconds: None,
    on_text: Callable[[str], None] | None = None,
    reserve: Callable[[int], None] = lambda count: None,
    stop: threading.Event | None = None,
    caller: Client = NOBODY,
) -> list[Transcript]:
    """A transcript of each recording; their pieces share batches. `window`: most seconds of a piece.

    `on_progress` receives the seconds of audio that were finished, in all those of the recordings: first what is left
    out of each one, then what is finished by a batch; what two pieces share counts once. `on_text` receives the text of
    a single recording (its translation, if requested) as it becomes final, piece by piece; its parts join to the
    transcript's text. `reserve` is called once, before a piece is transcribed, with the bytes of the log-mel frames of
    the longest one; it may raise. `caller` as of `Engine.generate_many`. Raises `Stopped` soon after `stop` is set: at
    the next block that is read or the engine's next step. Raises ValueError for a recording that can't be read or lasts
    longer than `max_seconds`."""
    assert on_text is None or len(recordings) == 1, "the texts of several recordings would mix"
    limit = longest_piece(engine, task, window)
    stop = stop or threading.Event()
    decoders = engine.processor.decoders
    streams = [StoppableStream(source, max_seconds, stop, decoders) for source in recordings]
    sounds = [measure(stream) for stream in streams]
    plans = [cut(sound, limit) for sound in sounds]
    lengths = [piece.seconds for plan in plans for piece in plan]
    reserve(nbytes(round(max(lengths, default=0.0) * RATE), RATE))
    unfinished = [covered(plan) for plan in plans]
    for sound, seconds in zip(sounds, unfinished, strict=True):
        on_progress(max(0.0, sound.seconds - seconds))
    todo = [PieceJob(i, piece) for i, plan in enumerate(plans) for piece in plan]
    most = engine.processor.caps.audio_seconds
    readers = [Reader(stream, most) for stream in streams]
    answers: list[list[PieceAnswer]] = [[] for _ in recordings]
    usages = [Usage() for _ in recordings]
    streamed, sent = StreamedText(task.texts), 0
    while todo:
        batch = _next_batch(engine, task, todo)
        if on_text is not None:
            batch = batch[: min(MAX_STREAMED_BATCH, len(answers[0]) + 1)]
        remaining = todo[len(batch) :]
        completions = _generate(engine, readers, task, batch, stop, caller)
        for job, completion in zip(batch, completions, strict=True):
            usages[job.recording].add(completion)
            if retries := _evaluate(engine, sounds[job.recording], task, job, completion):
                remaining += retries
                continue
            assert job.best is not None
            answers[job.recording].append(job.best)
        todo = sorted(remaining, key=lambda job: (job.recording, job.piece.start))
        for number in sorted({job.recording for job in batch}):
            before = unfinished[number]
            unfinished[number] = covered(job.piece for job in todo if job.recording == number)
            on_progress(before - unfinished[number])
        if on_text is not None:
            # Text before the first piece without an answer is final.
            ready = sorted(answers[0], key=lambda answer: answer.piece.start)
            pieces = [answer.piece for answer in ready] + [job.piece for job in todo]
            pieces.sort(key=lambda piece: piece.start)
            while sent < len(ready) and ready[sent].piece == pieces[sent]:
                following = pieces[sent + 1] if sent + 1 < len(pieces) else None
                if delta := streamed.add(ready[sent], following):
                    on_text(delta)
                sent += 1
    transcripts = []
    for stream, sound, own, usage in zip(streams, sounds, answers, usages, strict=True):
        own.sort(key=lambda answer: answer.piece.start)
        if task.words == "aligned":
            own = _aligned(engine, sections(stream, [a.piece for a in own], most), task, own)
        tokenizer, words = engine.processor.tokenizer, task.words is not None
        transcript = join(tokenizer, sound, own, task.texts, words=words, expected=task.script)
        transcripts.append(
            replace(
                transcript,
                adapter=usage.adapter,
                prompt_tokens=usage.prompt,
                audio_tokens=usage.audio,
                answer_tokens=usage.answers,
            )
        )
    return transcripts


def _aligned(
    engine: Engine,
    clips: Iterable[tuple[Float[np.ndarray, " n"], int]],
    task: Task,
    answers: Sequence[PieceAnswer],
) -> list[PieceAnswer]:
    """Answers with the times of their tokens, from the clips of their pieces."""
    result = []
    for a, clip in zip(answers, clips, strict=True):
        row = engine.rows.row([Message.user(Audio(clip), task.prompt)], adapter=task.adapter)
        result.append(replace(a, times=tuple(align(engine.model, row, a.answer.tokens))))
    return result


def _prompt_tokens(engine: Engine, task: Task) -> int:
    """Tokens of the prompt without its audio."""
    return engine.processor.count([Message.user(task.prompt)]).total


def _available(engine: Engine, task: Task, job: PieceJob) -> int:
    """Tokens of the context that prompt and audio leave."""
    return engine.longest - _prompt_tokens(engine, task) - job.audio_tokens


def _budget(engine: Engine, task: Task, job: PieceJob) -> int:
    """Most tokens of the answer."""
    texts = 2 if task.texts == "both" else 1
    tokens = job.budget_factor * (EXTRA_TOKENS + math.ceil(job.piece.seconds * TEXT_TOKENS * texts))
    return min(tokens, _available(engine, task, job))


def _next_batch(engine: Engine, task: Task, todo: Sequence[PieceJob]) -> list[PieceJob]:
    """The first jobs that fit in `BATCH_TOKENS`, at least one."""
    total, batch = 0, list[PieceJob]()
    for job in todo:
        total += job.audio_tokens + _budget(engine, task, job)
        if batch and total > BATCH_TOKENS:
            break
        batch.append(job)
    return batch


def _generate(
    engine: Engine,
    readers: Sequence[Reader],
    task: Task,
    batch: Sequence[PieceJob],
    stop: threading.Event,
    caller: Client,
) -> list[Completion]:
    """Answers to jobs in order of recording and time; a piece is read when the engine takes its conversation."""

    def conversations() -> Iterator[list[Message]]:
        for job in batch:
            yield [Message.user(Audio(readers[job.recording].read(job.piece)), task.prompt)]

    def sampling(job: PieceJob) -> SamplingParams:
        if task.sampling is not None:
            most = min(task.sampling.max_tokens, _budget(engine, task, job))
            return replace(task.sampling, max_tokens=most)
        return SamplingParams(
            max_tokens=_budget(engine, task, job),
            temperature=task.temperatures[job.tries],
            seed=task.seed + job.tries,
            logprobs=0,
        )

    return engine.generate_many(
        conversations(),
        sampling=[sampling(job) for job in batch],
        adapter=task.adapter,
        stop=stop,
        caller=caller,
    )


def _evaluate(
    engine: Engine, sound: VoiceFeatures, task: Task, job: PieceJob, answer: Completion
) -> list[PieceJob]:
    """Jobs that replace this one (retries or halves); [] if the job's best answer is final."""
    loops, truncated = repetition(answer.text), answer.finish_reason == "length"
    temperature = task.sampling.temperature if task.sampling else task.temperatures[job.tries]
    if job.best is None or loops < repetition(job.best.answer.text):
        job.best = PieceAnswer(job.piece, answer, temperature)
    if task.sampling is None:
        if loops and job.piece.seconds <= MIN_SPLIT and job.tries + 1 < len(task.temperatures):
            job.tries += 1
            return [job]
        can_grow = _budget(engine, task, job) < _available(engine, task, job)
        if truncated and not loops and job.budget_factor == 1 and can_grow:
            job.budget_factor, job.best = 2, None
            return [job]
        if (loops or truncated) and job.piece.seconds > (MIN_SPLIT if loops else 2 * MIN_HALF):
            return [PieceJob(job.recording, piece) for piece in halves(sound, job.piece)]
    best, doubts = job.best.answer, []
    if repetition(best.text):
        retried = task.sampling is None and len(task.temperatures) > 1
        temperatures = f"{task.temperatures[0]:g} to {task.temperatures[-1]:g}"
        retries = f" at every temperature from {temperatures}" if retried else ""
        doubts.append(f"the answer repeats itself{retries}; speech may be missing")
    if best.finish_reason == "length":
        doubts.append(
            f"the answer was truncated after {quantity(len(best.tokens), 'token')}; the end may be missing"
        )
    job.best = PieceAnswer(job.piece, best, job.best.temperature, tuple(doubts))
    return []
