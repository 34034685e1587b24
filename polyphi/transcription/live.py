"""Live transcription: audio that arrives in parts -> pieces of speech, partial text, and the transcript of each piece.

>>> with Live(engine, transcription(), rate=24000, emit=print) as live:
...     for samples in microphone: live.append(samples)          # int16 [n], any number of samples
...     live.finish()                                            # commits the rest and waits for its transcript

Voice activity detection (vad.py) looks at the last 30 s after every 0.1 s of audio. It opens an item where speech
begins and commits it after a silence, or at the quietest point before 30 s. Without detection the caller commits. Where
the pieces are cut depends on the samples alone, not on the parts or on the time at which they arrive.

A committed piece is transcribed by `longform.transcribe`, as a recording of its own would be. Before that, a thread
transcribes the open item again and again; the words on which two successive hypotheses agree are sent as a delta
("local agreement"). A delta is never taken back: if the transcript doesn't begin with the deltas, it replaces them.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Int16

from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import NOBODY, Client
from polyphi.transcription.longform import Task, cut_point, longest_piece, transcribe
from polyphi.transcription.transcript import text_of
from polyphi.transcription.vad import (
    ABOVE_NOISE,
    FRAME,
    SPEECH_PAD,
    VoiceFeatures,
    features,
    frame_sizes,
    speech_ranges,
)
from polyphi.transcription.words import agreement, repetition
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import Transcript

TICK = 10  # frames between two decisions of the detector
WINDOW_TICKS = 300  # ticks that it looks at: 30 s
MAX_PIECE = 30.0  # s of a piece that the detector cuts, and of an open piece with partial text
MIN_PIECE = 0.1  # s of a piece, as in OpenAI's API
CUT_MARGIN = 0.5  # s before the limit of a piece in which it isn't cut
MAX_DELAY = 1.0  # s; speech is detected this long after it began, at most
HYPOTHESIS_STEP = 0.4  # s of audio between two hypotheses, at least
HYPOTHESIS_PAUSE = 0.5  # of the time that a hypothesis took, until the next one


@dataclass(frozen=True)
class TurnDetection:
    """Settings of voice activity detection. `threshold`: from 0 to 1, how much louder than noise speech must be (0.5: 4
    dB); `padding`: seconds before the speech that belong to its piece; `silence`: seconds that end a piece."""

    threshold: float = 0.5
    padding: float = 0.3
    silence: float = 0.5


@dataclass(eq=False)
class AudioItem:
    """A piece of the audio, from its first sample on. `number` counts the items of a session."""

    number: int
    start: int
    """Index of the item's first sample in all audio of the session."""
    samples: Int16[np.ndarray, " n"] | None = None
    """The item's audio, once it is committed."""
    sent: str = ""
    """The text of all deltas of the item."""
    hypothesis: str = ""
    next_hypothesis: float = 0.0
    """Index of the sample that starts the next hypothesis; infinite if there is none."""


@dataclass(frozen=True)
class SpeechStarted:
    """Speech begins `seconds` after the start of all audio, padding included."""

    item: AudioItem
    seconds: float


@dataclass(frozen=True)
class SpeechStopped:
    """The speech of an item, with the silence that ended it, stops at `seconds`. `Committed` follows."""

    item: AudioItem
    seconds: float


@dataclass(frozen=True)
class Committed:
    """An item has all its audio; its transcript follows as `Completed` or `Failed`."""

    item: AudioItem


@dataclass(frozen=True)
class TranscriptDelta:
    """Text to be appended to the text of an item."""

    item: AudioItem
    text: str


@dataclass(frozen=True)
class Completed:
    """The transcript of an item. `revised`: its text doesn't begin with the item's deltas, and replaces them.
    `waited`: seconds since the item was committed."""

    item: AudioItem
    transcript: Transcript
    revised: bool
    waited: float


@dataclass(frozen=True)
class Failed:
    """An item that couldn't be transcribed."""

    item: AudioItem
    error: Exception


LiveEvent = SpeechStarted | SpeechStopped | Committed | TranscriptDelta | Completed | Failed


class BufferFull(ValueError):
    """More audio than a session may have waiting."""


class TooShort(ValueError):
    """Less audio than a piece must have."""


class Detector:
    """Speech in audio that arrives in parts, decided every 0.1 s from the features of the last 30 s. Times are seconds
    since the first sample that it received."""

    def __init__(self, rate: int, turns: TurnDetection) -> None:
        self.turns, self._rate = turns, rate
        self._window, self._hop, _ = frame_sizes(rate)
        self._buffer = np.empty(0, np.float32)
        self._ticks: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=WINDOW_TICKS)
        self._count = 0

    def add(self, samples: Int16[np.ndarray, " n"]) -> None:
        self._buffer = np.concatenate([self._buffer, samples.astype(np.float32) / 32768])

    def tick(self) -> bool:
        """Advances by one tick; False if there is too little audio for it."""
        needed = (TICK - 1) * self._hop + self._window
        if len(self._buffer) < needed:
            return False
        self._ticks.append(features(self._buffer[:needed], self._rate))
        self._buffer = self._buffer[TICK * self._hop :]
        self._count += 1
        return True

    @property
    def now(self) -> float:
        """The time of the last tick."""
        return self._count * TICK * FRAME

    def sound(self, start: float = 0.0) -> tuple[VoiceFeatures, float]:
        """(features of the audio from `start`, or of the last 30 s, to now; the time at which they begin)."""
        first = max(round(start / (TICK * FRAME)), self._count - len(self._ticks))
        ticks = list(self._ticks)[first - self._count :] if first < self._count else []
        level, flatness = (np.concatenate(values) for values in zip(*ticks, strict=True))
        above = 2 * self.turns.threshold * ABOVE_NOISE
        begin = first * TICK * FRAME
        return VoiceFeatures(level, flatness, self.now - begin, above), begin

    def speech(self, after: float) -> list[tuple[float, float]]:
        """Ranges of speech that reach past `after`, as (start, end)."""
        sound, begin = self.sound()
        ranges = [(begin + start, begin + end) for start, end in speech_ranges(sound)]
        # What ends less than a margin later may be an extension of speech before it.
        return [(start, end) for start, end in ranges if end > after + SPEECH_PAD * FRAME]


class Live:
    """A session of live transcription. `emit` receives its events, in order, in the threads that cause them: it must
    return soon and not call the session. `buffered`: most seconds of audio that may wait, open or committed;
    `window` and `caller` as of `longform.transcribe`. Raises ValueError where the context is too short for audio."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        *,
        rate: int,
        emit: Callable[[LiveEvent], None],
        turns: TurnDetection | None = TurnDetection(),
        buffered: float = 300.0,
        window: float | None = None,
        caller: Client = NOBODY,
    ) -> None:
        self.rate, self.task, self.window = rate, task, window
        self._engine, self._emit, self._caller = engine, emit, caller
        self._buffered = buffered
        self._longest = min(MAX_PIECE, longest_piece(engine, task, window))
        self._audio = bytearray()  # int16 samples from `_begin` to `_end`
        self._begin = self._end = 0
        self._items = 0
        self._open: AudioItem | None = None
        self._committed: deque[tuple[AudioItem, float]] = deque()
        self._waiting = 0  # samples of committed items without a transcript
        self._changed = threading.Condition()
        self._stop_hypothesis = threading.Event()
        self._stop = threading.Event()
        self._finishing = False
        self._detect(turns)
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def idle(self) -> bool:
        """Whether no item is open or waits for its transcript: the settings can be changed."""
        with self._changed:
            return self._open is None and not self._waiting

    def configure(self, turns: TurnDetection | None, task: Task) -> None:
        """Changes the settings for the audio that follows; the session must be `idle`."""
        with self._changed:
            assert self._open is None and not self._waiting
            self.task = task
            self._longest = min(MAX_PIECE, longest_piece(self._engine, task, self.window))
            self._drop(self._end)
            self._detect(turns)

    def _detect(self, turns: TurnDetection | None) -> None:
        self._detector = None if turns is None else Detector(self.rate, turns)
        self._origin = self._end
        """Index of the sample at which the detector's time begins."""

    def append(self, samples: Int16[np.ndarray, " n"]) -> None:
        """Adds audio. Raises BufferFull, and adds none of it, if too much would wait."""
        with self._changed:
            total = self._waiting + len(self._audio) // 2 + len(samples)
            if total > self._buffered * self.rate:
                raise BufferFull(
                    f"at most {self._buffered:g} s of audio may wait for its transcript, found {total / self.rate:.1f} "
                    "s; send audio at the speed at which it was recorded, or wait for transcripts"
                )
            if not len(samples):
                return
            self._audio += samples.astype("<i2").tobytes()
            self._end += len(samples)
            if self._detector is None:
                if self._open is None:
                    self._open = self._item(self._begin)
            else:
                self._detector.add(samples)
                while not self._stop.is_set() and self._detector.tick():
                    self._decide(self._detector)
            self._changed.notify_all()

    def commit(self) -> None:
        """Commits the audio since the last item. Raises TooShort below 0.1 s."""
        with self._changed:
            seconds = (self._end - self._begin) / self.rate
            if seconds < MIN_PIECE:
                raise TooShort(
                    f"expected at least {1000 * MIN_PIECE:g} ms of audio to commit, found {1000 * seconds:.2f} ms"
                )
            self._commit(self._open or self._item(self._begin), self._end)

    def clear(self) -> None:
        """Discards the audio since the last item, and the open item."""
        with self._changed:
            self._close_item()
            self._drop(self._end)

    def wait(self, seconds: float) -> None:
        """Waits until at most `seconds` of committed audio have no transcript."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting <= seconds * self.rate or self._stop.is_set()
            )

    def finish(self) -> None:
        """Commits the open item, and returns when all items have a transcript."""
        with self._changed:
            if self._open is not None and (self._end - self._begin) / self.rate >= MIN_PIECE:
                self._commit(self._open, self._end)
            self._finishing = True
            self._changed.notify_all()
        self._thread.join()

    def stop(self) -> None:
        """Stops what is being generated, within a step of the engine, and returns at once; `close` must follow."""
        self._stop.set()  # before the other event, which `_close_item` replaces
        self._stop_hypothesis.set()

    def close(self) -> None:
        """Ends the session, and returns when its thread has ended."""
        self.stop()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _item(self, start: int) -> AudioItem:
        self._items += 1
        return AudioItem(
            self._items - 1, start, next_hypothesis=start + HYPOTHESIS_STEP * self.rate
        )

    def _seconds(self, sample: int) -> float:
        return sample / self.rate

    def _drop(self, sample: int) -> None:
        """Drops buffered audio before a sample."""
        if sample > self._begin:
            del self._audio[: 2 * (sample - self._begin)]
            self._begin = sample

    def _decide(self, detector: Detector) -> None:
        """Opens or commits an item, according to the detector's last tick."""

        def sample(seconds: float) -> int:
            return self._origin + round(seconds * self.rate)

        now, begin = detector.now, (self._begin - self._origin) / self.rate
        ranges = detector.speech(begin)
        if self._open is None:
            if not ranges:
                self._drop(sample(now - detector.turns.padding - MAX_DELAY))
                return
            start = max(self._begin, sample(ranges[0][0] - detector.turns.padding))
            self._start(start)
        assert self._open is not None
        start_time = (self._open.start - self._origin) / self.rate
        # A range ends a margin after the last voice; one that reaches the last tick may go on.
        silence = max(detector.turns.silence - SPEECH_PAD * FRAME, FRAME / 2)
        if not ranges or now - ranges[-1][1] >= silence:
            self._stop_speech(sample(now))
        elif now - start_time >= self._longest:
            sound, at = detector.sound(start_time)
            latest = now - at - CUT_MARGIN
            cut, _ = cut_point(sound, latest - self._longest / 2, latest)
            self._stop_speech(sample(at + cut))
            self._start(self._begin)

    def _start(self, start: int) -> None:
        self._drop(start)
        self._open = self._item(start)
        self._emit(SpeechStarted(self._open, self._seconds(start)))

    def _stop_speech(self, end: int) -> None:
        item = self._open
        assert item is not None
        self._emit(SpeechStopped(item, self._seconds(end)))
        self._commit(item, end)

    def _close_item(self) -> None:
        self._open = None
        self._stop_hypothesis.set()
        self._stop_hypothesis = threading.Event()
        if self._stop.is_set():
            self._stop_hypothesis.set()

    def _commit(self, item: AudioItem, end: int) -> None:
        count = 2 * (end - self._begin)
        item.samples = np.frombuffer(bytes(self._audio[:count]), "<i2")
        self._close_item()
        self._drop(end)
        self._waiting += len(item.samples)
        self._emit(Committed(item))
        self._committed.append((item, time.monotonic()))
        self._changed.notify_all()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            item, samples, committed_at, stop = work
            if committed_at is None:
                self._hypothesize(item, samples, stop)
            else:
                self._transcribe(item, samples, committed_at)

    def _next(
        self,
    ) -> tuple[AudioItem, Int16[np.ndarray, " n"], float | None, threading.Event] | None:
        """The next item to transcribe, its audio, the time at which it was committed (None if it is open), and the
        event that stops the work; None at the end of the session."""
        with self._changed:
            while not self._stop.is_set():
                if self._committed:
                    item, committed_at = self._committed.popleft()
                    assert item.samples is not None
                    return item, item.samples, committed_at, self._stop
                if self._finishing:
                    return None
                opened, count = self._open, self._end - self._begin
                if (
                    opened
                    and self._end >= opened.next_hypothesis
                    and count <= MAX_PIECE * self.rate
                ):
                    samples = np.frombuffer(bytes(self._audio), "<i2")
                    return opened, samples, None, self._stop_hypothesis
                self._changed.wait()
            return None

    def _answer(
        self, samples: Int16[np.ndarray, " n"], task: Task, stop: threading.Event
    ) -> Transcript:
        (transcript,) = transcribe(
            self._engine,
            [(samples, self.rate)],
            task,
            window=self.window,
            stop=stop,
            caller=self._caller,
        )
        return transcript

    def _hypothesize(
        self, item: AudioItem, samples: Int16[np.ndarray, " n"], stop: threading.Event
    ) -> None:
        """Transcribes the audio of an open item so far, and sends the words that won't change."""
        started_at, end = time.monotonic(), self._end
        once = SamplingParams(max_tokens=self._engine.longest, logprobs=0)
        try:
            text = text_of(self._answer(samples, replace(self.task, sampling=once), stop))
        except Stopped:
            return
        except Exception:  # the transcript of the committed piece reports it
            item.next_hypothesis = math.inf
            return
        duration = (time.monotonic() - started_at) * self.rate
        with self._changed:
            pause = max(end + HYPOTHESIS_STEP * self.rate, self._end + HYPOTHESIS_PAUSE * duration)
            # While the machine is slower than the speech, each hypothesis waits for twice the audio.
            slow = item.start + 2 * duration if duration > len(samples) else 0.0
            item.next_hypothesis = max(pause, slow)
            if self._open is not item or repetition(text):
                return
            stable, item.hypothesis = agreement(item.hypothesis, text), text
            if len(stable) > len(item.sent) and stable.startswith(item.sent):
                delta, item.sent = stable[len(item.sent) :], stable
                self._emit(TranscriptDelta(item, delta))

    def _transcribe(
        self, item: AudioItem, samples: Int16[np.ndarray, " n"], committed_at: float
    ) -> None:
        event: Completed | Failed
        try:
            transcript = self._answer(samples, self.task, self._stop)
        except Stopped:
            return
        except Exception as error:
            event = Failed(item, error)
        else:
            text = text_of(transcript)
            revised = not text.startswith(item.sent)
            if not revised and len(text) > len(item.sent):
                delta, item.sent = text[len(item.sent) :], text
                self._emit(TranscriptDelta(item, delta))
            event = Completed(item, transcript, revised, time.monotonic() - committed_at)
        with self._changed:
            self._waiting -= len(samples)
            item.samples = None
            self._emit(event)
            self._changed.notify_all()
