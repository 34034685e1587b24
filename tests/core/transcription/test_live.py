"""Live transcription: the pieces and their transcripts depend on the samples alone; deltas are never taken back."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.engine.engine import Engine, Stopped
from polyphi.transcription import live as live_module
from polyphi.transcription.live import (
    BufferFull,
    Committed,
    Completed,
    Failed,
    Live,
    LiveEvent,
    SpeechStarted,
    SpeechStopped,
    TooShort,
    TranscriptDelta,
    TurnDetection,
)
from polyphi.transcription.longform import transcribe, transcription
from polyphi.transcription.words import agreement
from polyphi.types.completion import Completion
from polyphi.types.sampling import SamplingParams
from tests.core.transcription.test_longform import ToneEngine
from tests.fixtures.audio import WORD, say

RATE = 24000
TASK = transcription()


def pcm(words: Sequence[int], pauses: Sequence[float], noise: float = 1e-4) -> np.ndarray:
    return np.round(32767 * say(words, pauses, RATE, noise)).astype("<i2")


TALK = pcm(range(10), [1.0, 0.2, 0.2, 1.5, 0.2, 2.0, 0.2, 0.2, 7.0, 0.2, 1.0])
"""Four pieces of 3, 2, 3 and 2 words."""


def session(
    samples: np.ndarray,
    parts: Sequence[int] = (2400,),
    engine: Engine | None = None,
    act: Callable[[Live, int], None] = lambda live, at: None,
    **options: Any,
) -> list[LiveEvent]:
    """The events of a session whose audio arrives in parts of these sizes, in turn; `act` runs after each part."""
    events = list[LiveEvent]()
    with Live(engine or ToneEngine(), TASK, rate=RATE, emit=events.append, **options) as live:
        at = number = 0
        while at < len(samples):
            size = parts[number % len(parts)]
            live.append(samples[at : at + size])
            at, number = at + size, number + 1
            act(live, at)
        live.finish()
    return events


def pieces(events: Sequence[LiveEvent]) -> list[tuple[int, float, float]]:
    """(item, start, end) of each piece."""
    starts = {e.item.number: e.seconds for e in events if isinstance(e, SpeechStarted)}
    return [
        (e.item.number, starts[e.item.number], e.seconds)
        for e in events
        if isinstance(e, SpeechStopped)
    ]


def finals(events: Sequence[LiveEvent]) -> list[tuple[int, str]]:
    return [(e.item.number, e.transcript.text) for e in events if isinstance(e, Completed)]


def of_type(events: Sequence[LiveEvent], *types: type) -> list[Any]:
    return [event for event in events if isinstance(event, types)]


def test_pieces_are_the_speech_between_silences() -> None:
    events = session(TALK)
    assert [text for _, text in finals(events)] == ["w0 w1 w2", "w3 w4", "w5 w6 w7", "w8 w9"]
    for (_, start, end), (first, last) in zip(
        pieces(events), ((0, 3), (3, 5), (5, 8), (8, 10)), strict=True
    ):
        pauses = [1.0, 0.2, 0.2, 1.5, 0.2, 2.0, 0.2, 0.2, 7.0, 0.2, 1.0]
        begin = sum(pauses[: first + 1]) + WORD * first
        assert begin - 0.8 < start < begin - 0.2
        finish = sum(pauses[:last]) + WORD * last
        assert finish + 0.4 < end < finish + 0.9
    order = [type(e) for e in events if not isinstance(e, TranscriptDelta) and e.item.number == 0]
    assert order == [SpeechStarted, SpeechStopped, Committed, Completed]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
def test_pieces_and_transcripts_are_the_same_for_any_parts(sizes: list[int]) -> None:
    if max(sizes) < 200:
        sizes.append(2000)
    events, expected = session(TALK, sizes), session(TALK, [len(TALK)])
    assert pieces(events) == pieces(expected) and finals(events) == finals(expected)
    assert len(finals(events)) == 4


def test_each_transcript_is_that_of_its_piece_alone() -> None:
    events = session(TALK)
    for (_, start, end), (_, text) in zip(pieces(events), finals(events), strict=True):
        piece = TALK[round(start * RATE) : round(end * RATE)]
        (alone,) = transcribe(ToneEngine(), [(piece, RATE)], TASK)
        assert text == alone.text != ""


def test_speech_without_a_silence_is_cut_in_a_pause_before_30_s() -> None:
    words = [n % 90 for n in range(150)]
    events = session(pcm(words, [1.0] + [0.25] * 149 + [1.0]))
    parts = pieces(events)
    assert len(parts) >= 3 and all(10 < end - start <= 30 for _, start, end in parts[:-1])
    assert all(a[2] == b[1] for a, b in pairwise(parts)), "no audio is lost"
    assert " ".join(text for _, text in finals(events)) == " ".join(f"w{n}" for n in words)


def test_silence_and_noise_are_no_speech() -> None:
    noise = np.random.default_rng(0).standard_normal(10 * RATE)
    for level in (0, 1, 300):
        assert session((level * noise).astype("<i2")) == []


def test_a_longer_silence_joins_pieces_and_a_shorter_one_splits_them() -> None:
    joined = session(TALK, turns=TurnDetection(silence=2.5))
    assert [len(text.split()) for _, text in finals(joined)] == [8, 2]
    slow = pcm(range(4), [1.0, 0.6, 0.6, 0.6, 1.0])
    joined = session(slow, turns=TurnDetection(silence=1.0))
    assert [text for _, text in finals(joined)] == ["w0 w1 w2 w3"]
    split = session(slow, turns=TurnDetection(silence=0.1))
    assert [text for _, text in finals(split)] == ["w0", "w1", "w2", "w3"]


def test_the_threshold_is_above_the_noise() -> None:
    quiet = pcm(range(4), [6.0, 0.2, 0.2, 0.2, 2.0], noise=0.02)
    quiet = (quiet / 8).astype("<i2")
    hum = (600 * np.sin(2 * np.pi * 440 * np.arange(len(quiet)) / RATE)).astype("<i2")
    low, high = (session(quiet + hum, turns=TurnDetection(threshold=t)) for t in (0.5, 1.0))
    assert len(pieces(low)) >= len(pieces(high))


# ---------------------------------------------------------------- deltas


class Changing(ToneEngine):
    """Its answers are `texts` of their numbers, from 1 on."""

    def __init__(self, texts: Callable[[int], str]) -> None:
        super().__init__()
        self.texts, self.count = texts, 0

    def generate_many(self, conversations: Any, **options: Any) -> list[Completion]:
        (completion,) = super().generate_many(conversations, **options)
        self.count += 1
        return [replace(completion, text=self.texts(self.count))]


def paced(live: Live, at: int) -> None:
    """Lets the session's thread transcribe what has arrived."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with live._changed:
            item = live._open
            if item is None or live._end < item.next_hypothesis:
                return
        time.sleep(0.001)
    raise AssertionError("the open item was not transcribed")


def deltas(events: Sequence[LiveEvent], number: int) -> list[str]:
    return [e.text for e in of_type(events, TranscriptDelta) if e.item.number == number]


def test_deltas_come_before_the_piece_ends_and_join_to_its_transcript() -> None:
    events = session(TALK, act=paced)
    assert finals(events) == finals(session(TALK))
    for number, text in finals(events):
        assert "".join(deltas(events, number)) == text
    stopped = next(i for i, e in enumerate(events) if isinstance(e, SpeechStopped))
    assert any(isinstance(e, TranscriptDelta) for e in events[:stopped])
    assert not any(e.revised for e in of_type(events, Completed))


def test_only_words_of_two_successive_hypotheses_are_sent() -> None:
    texts = ["a", "a b", "a c", "a c d", "x c d e", "a c d e"]

    def answers(count: int) -> str:
        return texts[min(count, len(texts)) - 1]

    events = session(pcm([5] * 8, [1.0] + [0.1] * 7 + [2.0]), engine=Changing(answers), act=paced)
    sent = deltas(events, 0)
    assert sent[:2] == ["a", " c"]
    assert "".join(sent) == "a c d e", "the last text continues what was sent"


def test_a_transcript_that_contradicts_its_deltas_replaces_them() -> None:
    committed = threading.Event()
    engine = Changing(lambda count: "other words" if committed.is_set() else "w0 w1 w2")
    events = list[LiveEvent]()

    def emit(event: LiveEvent) -> None:
        if isinstance(event, Committed):
            committed.set()
        events.append(event)

    with Live(engine, TASK, rate=RATE, emit=emit) as live:
        talk = pcm(range(3), [1.0, 0.3, 0.3, 2.0])
        for at in range(0, len(talk), 2400):
            live.append(talk[at : at + 2400])
            paced(live, at)
        live.finish()
    (completed,) = of_type(events, Completed)
    assert completed.revised and completed.transcript.text == "other words"
    assert "".join(deltas(events, 0)) == completed.item.sent == "w0 w1 w2"


@given(st.lists(st.sampled_from(["a", "bc", "d", "é", "中", "文"]), max_size=6), st.data())
def test_agreement_is_a_common_prefix_of_whole_words(words: list[str], data: Any) -> None:
    left = " ".join(words)
    right = data.draw(st.sampled_from([left, left + " more", left + "x", left[:-1], "", "a"]))
    common = agreement(left, right)
    assert left.startswith(common) and right.startswith(common)
    assert agreement(common, left) == common == agreement(right, left)
    assert agreement(left, left) == left.rstrip()
    for text in (left, right):
        rest = text[len(common) :]
        assert not rest or not common or rest[0] == " " or {rest[0], common[-1]} & set("中文")


# ---------------------------------------------------------------- without detection


def test_without_detection_the_caller_commits() -> None:
    events = list[LiveEvent]()
    with Live(ToneEngine(), TASK, rate=RATE, emit=events.append, turns=None) as live:
        with pytest.raises(TooShort):
            live.commit()
        live.append(TALK[: 4 * RATE])
        live.commit()
        live.append(TALK[4 * RATE : 8 * RATE])
        live.clear()
        live.append(TALK[8 * RATE :])
        live.append(np.empty(0, np.int16))
        live.finish()
    assert not of_type(events, SpeechStarted, SpeechStopped)
    assert [e.item.number for e in of_type(events, Committed)] == [0, 2]
    for (_, text), piece in zip(finals(events), (TALK[: 4 * RATE], TALK[8 * RATE :]), strict=True):
        assert text == transcribe(ToneEngine(), [(piece, RATE)], TASK)[0].text


def test_a_commit_with_detection_ends_the_open_piece() -> None:
    def act(live: Live, at: int) -> None:
        if at == round(1.7 * RATE):
            live.commit()

    events = session(TALK, [round(0.1 * RATE)], act=act)
    first = next(e for e in events if isinstance(e, Committed))
    assert first.item.start < 1.7 * RATE
    words = " ".join(text for _, text in finals(events)).replace("hm hm", "w1").split()
    assert [w for w in words if w != "hm"] == [f"w{n}" for n in range(10)]


def test_too_much_waiting_audio_is_refused_and_not_added() -> None:
    with Live(ToneEngine(), TASK, rate=RATE, emit=lambda e: None, turns=None, buffered=5.0) as live:
        live.append(np.zeros(4 * RATE, np.int16))
        with pytest.raises(BufferFull):
            live.append(np.zeros(2 * RATE, np.int16))
        live.append(np.zeros(RATE, np.int16))
        live.clear()
        live.append(np.zeros(5 * RATE, np.int16))


# ---------------------------------------------------------------- ends and errors


class Endless(ToneEngine):
    """Generates until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.stopped = threading.Event(), threading.Event()

    def generate_many(self, conversations: Any, *, stop: Any, **options: Any) -> Any:
        self.running.set()
        assert stop.wait(20)
        self.stopped.set()
        raise Stopped


def test_closing_stops_what_is_being_generated() -> None:
    for committed in (False, True):
        engine = Endless()
        with Live(engine, TASK, rate=RATE, emit=lambda e: None, turns=None) as live:
            live.append(TALK)
            if committed:
                live.commit()
            else:
                live.clear()
                live.append(TALK[: 2 * RATE])
            assert engine.running.wait(20)
        assert engine.stopped.is_set() and not live._thread.is_alive()


def test_a_commit_stops_the_hypothesis_of_its_piece() -> None:
    class Waits(ToneEngine):
        started, hypotheses = threading.Event(), 0

        def generate_many(self, conversations: Any, *, stop: Any, **options: Any) -> Any:
            if not self.started.is_set():
                self.started.set()
                assert stop.wait(20)
                raise Stopped
            return super().generate_many(conversations, stop=stop, **options)

    engine, events = Waits(), list[LiveEvent]()
    with Live(engine, TASK, rate=RATE, emit=events.append, turns=None) as live:
        live.append(TALK[: 2 * RATE])
        assert engine.started.wait(20)
        live.commit()
        live.finish()
    assert len(finals(events)) == 1


def test_a_piece_that_fails_is_reported_and_the_next_one_is_transcribed() -> None:
    class Fails(ToneEngine):
        def generate_many(self, conversations: Any, **options: Any) -> list[Completion]:
            completions = super().generate_many(conversations, **options)
            if "w3" in completions[0].text:
                raise RuntimeError("broken")
            return completions

    events = session(TALK, engine=Fails(), act=paced)
    (failed,) = of_type(events, Failed)
    assert failed.item.number == 1 and [n for n, _ in finals(events)] == [0, 2, 3]


def test_a_machine_slower_than_speech_sends_no_partial_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 100.0
            return self.now

    monkeypatch.setattr(live_module, "time", Clock())
    engine = ToneEngine()
    events = session(TALK, engine=engine, act=paced)
    assert len(engine.requests) <= 4 + 4, "one hypothesis for each piece"
    assert finals(events) == finals(session(TALK))


def test_settings_change_between_items() -> None:
    events = list[LiveEvent]()
    with Live(ToneEngine(), TASK, rate=RATE, emit=events.append) as live:
        live.append(TALK[:RATE])
        live.configure(None, TASK)
        live.append(TALK[RATE : 3 * RATE])
        assert not live.idle
        live.commit()
        live.wait(0)
        assert live.idle
        live.configure(TurnDetection(), TASK)
        live.append(TALK[3 * RATE :])
        live.finish()
    assert [e.item.number for e in of_type(events, SpeechStarted)] == [1, 2, 3]
    _, start, _ = pieces(events)[0]
    assert start >= 3.0, "times count from the start of all audio"


def test_the_context_must_have_room_for_audio() -> None:
    engine = ToneEngine(longest=70)
    with pytest.raises(ValueError, match="70"):
        Live(engine, TASK, rate=RATE, emit=lambda e: None)


def test_hypotheses_are_greedy_and_never_retried() -> None:
    engine = ToneEngine()
    session(TALK, engine=engine, act=paced)
    assert all(isinstance(its, SamplingParams) for _, its in engine.requests)
    assert {its.temperature for _, its in engine.requests} == {0.0}
