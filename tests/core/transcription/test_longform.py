"""Transcripts of recordings of any length lack no words and repeat none, or have a warning."""

import io
import random
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import Client
from polyphi.media.media import AudioStream, Caps
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription import longform
from polyphi.transcription.longform import Task, cut, longest_piece, sections, transcribe
from polyphi.transcription.transcript import Piece
from polyphi.transcription.vad import measure
from polyphi.types.completion import Completion, TokenLogprob
from polyphi.types.sampling import SamplingParams
from tests.fixtures.audio import WORD, decode_words, say

TASK = Task("Transcribe.")
TOKENIZER = Tokenizer.train(["w1 w2 w3 <sep>"], vocab_size=384)


class ToneEngine(Engine):
    """Replaces the engine with a decoder of the clips' tones. `answer` may change its answers; `requests` records
    (seconds, sampling) of each clip, `batches` the sizes of the calls."""

    longest = 4096  # type: ignore[assignment]

    def __init__(self, longest: int = 4096, answer: Any = None) -> None:
        self.longest, self.answer = longest, answer  # type: ignore[misc]
        self.processor = Processor(TOKENIZER)
        self.requests: list[tuple[float, SamplingParams]] = []
        self.batches: list[int] = []

    def generate_many(
        self, conversations: Any, *, sampling: Any, adapter: Any, stop: Any, caller: Any
    ) -> list[Completion]:
        answers = []
        for messages, its in zip(conversations, sampling, strict=True):
            if stop.is_set():
                raise Stopped
            wave, rate = messages[0].parts[0].source
            self.requests.append((len(wave) / rate, its))
            text = " ".join(decode_words(wave, rate))
            tokens = tuple(TOKENIZER.encode(text))
            answer = Completion(text, tokens, logprobs=tuple(TokenLogprob(t, -0.5) for t in tokens))
            answers.append(self.answer(answer, its, len(wave) / rate) if self.answer else answer)
        self.batches.append(len(answers))
        return answers


def words(numbers: list[int]) -> str:
    return " ".join(f"w{n}" for n in numbers)


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(range(97)),
    st.lists(st.sampled_from([0.02, 0.05, 0.1, 0.3, 0.8]), min_size=30, max_size=90),
    st.sampled_from([5.0, 8.0, 11.0]),
)
def test_pieces_join_to_all_words(numbers: list[int], pauses: list[float], window: float) -> None:
    """For any words and pauses: cut, transcribed in pieces and joined they are the same words. If an overlap is too
    short for a whole word, there is a warning, and no word is lost."""
    numbers = numbers[: len(pauses)]
    wave = say(numbers, [0.2, *pauses])
    engine = ToneEngine()
    (transcript,) = transcribe(engine, [(wave, 16000)], TASK, window=window)
    assert max(seconds for seconds, _ in engine.requests) <= window + 0.01
    if any("overlapping" in w for w in transcript.warnings):
        assert set(transcript.text.split()) >= {f"w{n}" for n in numbers}
    else:
        assert transcript.text == words(numbers)
    check_times(transcript)


def check_times(transcript: Any) -> None:
    ends = 0.0
    for part in (*transcript.segments,):
        assert ends <= part.start <= part.end <= transcript.seconds + 0.01
        ends = part.end
    ends = 0.0
    for word in transcript.words:
        assert ends <= word.start <= word.end <= transcript.seconds + 0.01
        ends = word.end
    assert " ".join(s.text for s in transcript.segments).split() == transcript.text.split()


def test_overlaps_are_joined() -> None:
    """Pauses are shorter than words: every cut is in speech, every seam is an overlap."""
    numbers = list(range(90))
    wave = say(numbers, [0.02] * 91)
    (transcript,) = transcribe(ToneEngine(), [(wave, 16000)], TASK, window=6.0)
    assert transcript.text == words(numbers) and transcript.warnings == ()
    pieces = cut(measure(AudioStream((wave, 16000))), 6.0)
    assert len(pieces) > 5 and all(piece.overlaps for piece in pieces[1:])
    assert all(b.start < a.end for a, b in pairwise(pieces))


def test_cuts_are_in_pauses_if_there_are_any() -> None:
    wave = say(list(range(40)), [0.05, *([0.05] * 9 + [0.9]) * 4])
    pieces = cut(measure(AudioStream((wave, 16000))), 9.0)
    assert len(pieces) > 2 and not any(piece.overlaps for piece in pieces)
    assert pieces[0].start == 0 and pieces[-1].end == pytest.approx(len(wave) / 16000)
    for piece in pieces[:-1]:
        at = round(piece.end * 16000)
        assert np.abs(wave[at - 800 : at + 800]).max() < 0.01


@pytest.mark.parametrize("seconds", [9.9, 10.1, 10.3, 10.6, 20.2, 31.0])
def test_no_piece_is_a_snippet(seconds: float) -> None:
    count = int(seconds / (WORD + 0.05))
    wave = say(list(range(count)), [0.05] * count + [seconds - count * (WORD + 0.05)])
    pieces = cut(measure(AudioStream((wave, 16000))), 10.0)
    assert all(0.5 <= piece.seconds <= 10.0 for piece in pieces)
    assert pieces[-1].end == pytest.approx(seconds, abs=0.01)
    for a, b in pairwise(pieces):
        assert b.start <= a.end


def test_long_silences_are_left_out_with_a_warning() -> None:
    wave = say([1, 2, 3, 4], [15.0, 0.1, 20.0, 0.1, 12.0])
    engine = ToneEngine()
    (transcript,) = transcribe(engine, [(wave, 16000)], TASK)
    assert transcript.text == "w1 w2 w3 w4" and sum(s for s, _ in engine.requests) < 6
    assert len(transcript.warnings) == 3 and transcript.warnings[0].startswith("0:00.0 to 0:14.")
    assert [round(s.start) for s in transcript.segments] == [15, 36]
    assert {s.source for s in transcript.segments} == {"window"}


def test_silence_and_hiss_are_not_transcribed() -> None:
    engine = ToneEngine()
    hiss = 0.1 * np.random.default_rng(0).standard_normal(16000 * 3).astype(np.float32)
    for wave in (np.zeros(16000 * 3, np.float32), hiss):
        (transcript,) = transcribe(engine, [(wave, 16000)], TASK)
        assert (transcript.text, transcript.segments) == ("", ()) and not engine.requests
        (warning,) = transcript.warnings
        assert warning.startswith("0:00.0 to 0:03.0: silence")


def test_segments_have_the_times_and_logprobs_of_their_speech() -> None:
    wave = say([1, 2, 3, 4, 5, 6], [1.0, 0.05, 0.05, 8.0, 0.05, 0.05, 1.0])
    task = replace(TASK, words="estimated")
    (transcript,) = transcribe(ToneEngine(), [(wave, 16000)], task)
    assert [s.text for s in transcript.segments] == ["w1 w2 w3", "w4 w5 w6"]
    assert {s.source for s in transcript.segments} == {"estimated"}  # one piece of eleven seconds
    assert {s.avg_logprob for s in transcript.segments} == {-0.5}
    truth = [1.0, 1.35, 1.7, 10.0, 10.35, 10.7]
    assert [w.start for w in transcript.words] == pytest.approx(truth, abs=0.1)
    assert [w.end for w in transcript.words] == pytest.approx([t + WORD for t in truth], abs=0.1)
    check_times(transcript)


def loop(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
    if sampling.temperature < 0.4:
        return replace(answer, text="thank you " * 20, finish_reason="length")
    return answer


def test_a_loop_is_retried_at_higher_temperatures() -> None:
    engine = ToneEngine(answer=loop)
    (transcript,) = transcribe(engine, [(say([1, 2, 3], [0.1] * 4), 16000)], TASK)
    assert transcript.text == "w1 w2 w3" and transcript.warnings == ()
    assert [its.temperature for _, its in engine.requests] == [0.0, 0.2, 0.4]
    assert transcript.segments[0].temperature == 0.4


def test_a_loop_that_remains_has_a_warning() -> None:
    engine = ToneEngine(answer=lambda answer, *_: replace(answer, text="thank you " * 20))
    (transcript,) = transcribe(engine, [(say([1, 2, 3], [0.1] * 4), 16000)], TASK)
    assert len(engine.requests) == 5
    assert transcript.warnings[0].startswith("0:00.0 to 0:01.3: the answer repeats itself")
    engine.requests.clear()
    own = replace(TASK, sampling=SamplingParams(max_tokens=9))  # without retries
    (transcript,) = transcribe(engine, [(say([1, 2, 3], [0.1] * 4), 16000)], own)
    assert len(engine.requests) == 1 and "repeats itself" in transcript.warnings[0]


def test_a_long_loop_is_split_in_halves() -> None:
    def looping(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
        return replace(answer, text="so " * 40) if seconds > 60 else answer

    numbers = [(5 * i) % 97 for i in range(95)]
    wave = say(numbers, [0.05] + [0.6] * 95)
    engine = ToneEngine(answer=looping)
    (transcript,) = transcribe(engine, [(wave, 16000)], TASK)
    assert transcript.text == words(numbers) and transcript.warnings == ()
    assert round(engine.requests[0][0]) == 86 and len(engine.requests) == 3


def test_a_truncated_answer_gets_more_tokens_then_halves_then_a_warning() -> None:
    def short(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
        count = sampling.max_tokens // 20  # words that fit
        own = answer.text.split()
        if len(own) <= count:
            return answer
        return replace(answer, text=" ".join(own[:count]), finish_reason="length")

    numbers = list(range(25))
    engine = ToneEngine(answer=short)
    (transcript,) = transcribe(engine, [(say(numbers, [0.1] + [0.6] * 25), 16000)], TASK)
    assert transcript.text == words(numbers) and transcript.warnings == ()
    budgets = [its.max_tokens for _, its in engine.requests]
    assert budgets[1] == 2 * budgets[0] and len(budgets) > 3
    never = ToneEngine(
        answer=lambda a, *_: replace(a, finish_reason="length", tokens=(1,) * 7, logprobs=())
    )
    (transcript,) = transcribe(never, [(say([1, 2], [0.1] * 3), 16000)], TASK)
    (warning,) = transcript.warnings
    assert warning.startswith("0:00.0 to 0:00.9: ") and "after 7 tokens" in warning


def test_pieces_fit_the_context() -> None:
    engine = ToneEngine(longest=400)
    for texts in ("transcript", "both"):
        task = replace(TASK, texts=texts)
        limit = longest_piece(engine, task)
        transcribe(engine, [(say(list(range(60)), [0.1] * 61), 16000)], task)
        prompt = engine.processor.count([longform.Message.user(TASK.prompt)]).total
        for seconds, its in engine.requests:
            assert seconds <= limit + 0.01
            assert prompt + int(np.ceil(seconds * 12.5)) + its.max_tokens <= 400
        engine.requests.clear()
    assert longest_piece(ToneEngine(longest=131072), TASK) == 1800
    assert longest_piece(ToneEngine(longest=131072), TASK, 30.0) == 30
    for longest, seconds in (
        (131072, 3600),
        (73_728, 3590),
    ):  # 20.5 tokens a second, and the prompt
        engine = ToneEngine(longest=longest)
        engine.processor.caps = Caps.for_audio(3600)
        assert longest_piece(engine, TASK) == pytest.approx(seconds, abs=3)
    with pytest.raises(ValueError, match="80 tokens"):
        longest_piece(ToneEngine(longest=80), TASK)
    with pytest.raises(ValueError, match="at least 1 s"):
        longest_piece(ToneEngine(), TASK, 0.5)


def test_short_recordings_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [(say([n, n + 1], [0.1] * 3), 16000) for n in range(0, 20, 2)]
    engine, finished = ToneEngine(), list[float]()
    transcripts = transcribe(engine, clips, TASK, on_progress=finished.append)
    assert [t.text for t in transcripts] == [f"w{n} w{n + 1}" for n in range(0, 20, 2)]
    assert engine.batches == [10]
    assert sum(finished) == pytest.approx(sum(len(w) / 16000 for w, _ in clips))
    monkeypatch.setattr(longform, "BATCH_TOKENS", 200)
    engine.batches.clear()
    assert transcribe(engine, clips, TASK) == transcripts and max(engine.batches) < 4


@pytest.mark.parametrize("fails", [False, True], ids=["pieces that overlap", "and are halved"])
def test_progress_is_never_negative_and_ends_at_the_length(fails: bool) -> None:
    """Cuts in speech make pieces that overlap."""

    def truncated(answer: Completion, *_: object) -> Completion:
        return replace(answer, finish_reason="length", tokens=(1,) * 7, logprobs=())

    wave = say(list(range(60)), [0.0] * 61)
    engine = ToneEngine(answer=truncated) if fails else ToneEngine()
    finished = list[float]()
    transcribe(engine, [(wave, 16000)], TASK, window=4.0, on_progress=finished.append)
    assert len(engine.batches) >= 1 and min(finished) >= 0
    assert sum(finished) == pytest.approx(len(wave) / 16000)


def test_both_texts_and_their_segments() -> None:
    def both(answer: Completion, *_: object) -> Completion:
        text = f"{answer.text} <sep> {answer.text.replace('w', 'v')}"
        return replace(answer, text=text, tokens=(), logprobs=())

    wave = say([1, 2, 3, 4], [0.1, 0.1, 12.5, 0.1, 0.1])
    (transcript,) = transcribe(
        ToneEngine(answer=both), [(wave, 16000)], replace(TASK, texts="both")
    )
    assert (transcript.text, transcript.translation) == ("w1 w2 w3 w4", "v1 v2 v3 v4")
    assert [(s.text, s.translation) for s in transcript.segments] == [
        ("w1 w2", "v1 v2"),
        ("w3 w4", "v3 v4"),
    ]
    (transcript,) = transcribe(ToneEngine(), [(wave, 16000)], replace(TASK, texts="both"))
    assert transcript.translation is None and any("<sep>" in w for w in transcript.warnings)
    (transcript,) = transcribe(ToneEngine(), [(wave, 16000)], replace(TASK, texts="translation"))
    assert (transcript.text, transcript.translation) == ("", "w1 w2 w3 w4")


def test_a_change_of_script_has_a_warning() -> None:
    def drifting(answer: Completion, *_: object) -> Completion:
        return replace(answer, text="谢谢观看") if "w3" in answer.text else answer

    wave = say([1, 2, 3, 4, 5, 6], [0.1, 0.1, 12.0, 12.0, 0.1, 0.1, 0.1])
    (transcript,) = transcribe(ToneEngine(answer=drifting), [(wave, 16000)], TASK)
    assert [w for w in transcript.warnings if "written in Han or kana" in w]
    (transcript,) = transcribe(
        ToneEngine(), [(say([1], [0.1] * 2), 16000)], replace(TASK, script="Han or kana")
    )
    assert "written in Latin" in transcript.warnings[0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 9.9), st.floats(0.01, 5)), min_size=1, max_size=6),
    st.sampled_from([8000, 16000, 22050]),
)
def test_sections_are_the_samples_between_their_times(
    spans: list[tuple[float, float]], rate: int
) -> None:
    wave = np.random.default_rng(0).standard_normal(rate * 10).astype(np.float32)
    pieces = [Piece(start, min(start + length, 10.0)) for start, length in sorted(spans)]
    whole = next(sections(AudioStream((wave, rate)), [Piece(0.0, 10.0)], 10.0))
    parts = list(sections(AudioStream((wave, rate)), pieces, 10.0))
    for piece, (part, its) in zip(pieces, parts, strict=True):
        first, last = (round(t * its) for t in (piece.start, piece.end))
        assert its == whole[1] and np.array_equal(part, whole[0][first:last])


def test_a_long_recording_is_never_whole_in_memory() -> None:
    """`sections` buffers a piece and a block."""
    size = 0

    class Watched(AudioStream):
        def __iter__(self):
            for _ in range(200):
                yield np.zeros(16000, np.float32)

    stream = Watched((np.zeros(16000 * 200, np.float32), 16000))
    for wave, _ in sections(stream, [Piece(float(i), i + 10.0) for i in range(0, 190, 10)], 10.0):
        size = max(size, len(wave), wave.base.size if wave.base is not None else 0)
    assert 160_000 <= size <= 16000 * 11


def fickle(rng: random.Random) -> Any:
    """Answers that sometimes loop, are truncated, lack words at their ends or have other ones."""

    def answer(whole: Completion, its: SamplingParams, seconds: float) -> Completion:
        parts = whole.text.split()
        if seconds > 60 or (rng.random() < 0.2 and its.temperature < 0.8):
            return replace(whole, text="so " * 40, tokens=(), logprobs=())
        truncated = rng.random() < 0.2
        parts = parts[: len(parts) // 2] if truncated else parts
        parts = [rng.choice(["hm", "字", w]) if rng.random() < 0.1 else w for w in parts]
        if rng.random() < 0.5:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(["<sep>", "", "字字"]))
        text = rng.choice(["", " ", "\n"]) + " ".join(parts) + rng.choice(["", " "])
        reason = "length" if truncated else "stop"
        return Completion(text, finish_reason=reason)

    return answer


@settings(max_examples=20, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from([0.02, 0.05, 0.3, 11.0]), min_size=8, max_size=60),
    st.sampled_from([3.0, 6.0, None]),
    st.sampled_from(["transcript", "translation", "both"]),
)
def test_streamed_text_is_the_text(
    rng: random.Random, pauses: list[float], window: float | None, texts: Any
) -> None:
    """With retries, halves, seams and silences: the deltas join to the text."""
    wave = say([rng.randrange(90) for _ in pauses], [0.1, *pauses])
    engine, deltas = ToneEngine(answer=fickle(rng)), list[str]()
    task = replace(TASK, texts=texts)
    (transcript,) = transcribe(engine, [(wave, 16000)], task, window=window, on_text=deltas.append)
    expected = transcript.text if texts == "transcript" else transcript.translation or ""
    assert "".join(deltas) == expected and "" not in deltas


def test_text_is_streamed_as_soon_as_it_is_final() -> None:
    """Batches have one, two, four and eight pieces; before a pause all text of a piece is final, before an overlap all
    but its last words."""
    wave = say(list(range(40)), [0.05, *([0.05] * 9 + [0.9]) * 4])
    engine, deltas = ToneEngine(), list[tuple[int, str]]()

    def on_text(text: str) -> None:
        deltas.append((len(engine.batches), text))

    (transcript,) = transcribe(engine, [(wave, 16000)], TASK, window=5.0, on_text=on_text)
    assert engine.batches[:2] == [1, 2] and max(engine.batches) <= longform.MAX_STREAMED_BATCH
    assert deltas[0] == (1, words(list(range(10)))) and len(deltas) == sum(engine.batches)
    deltas.clear()
    engine.batches.clear()
    (transcript,) = transcribe(
        ToneEngine(), [(say(list(range(90)), [0.02] * 91), 16000)], TASK, window=20.0
    )
    (again,) = transcribe(
        engine, [(say(list(range(90)), [0.02] * 91), 16000)], TASK, window=20.0, on_text=on_text
    )
    assert transcript == again and "".join(text for _, text in deltas) == transcript.text
    assert deltas[0][0] == 1 and deltas[0][1] == words(list(range(len(deltas[0][1].split()))))


def test_stop_ends_at_the_next_block_or_step() -> None:
    stop = threading.Event()
    engine = ToneEngine(answer=lambda answer, *_: stop.set() or answer)
    with pytest.raises(Stopped):
        transcribe(engine, [(say(list(range(40)), [0.5] * 41), 16000)], TASK, window=5.0, stop=stop)
    assert len(engine.requests) == 1
    engine.requests.clear()
    with pytest.raises(Stopped):  # while it is measured
        transcribe(engine, [(np.zeros(16000 * 60, np.float32), 16000)], TASK, stop=stop)
    assert not engine.requests


def test_a_recording_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `measure`; again from its start only for the retry of an earlier piece."""
    begun: list[int] = []

    class Watched(longform.StoppableStream):
        def __iter__(self):
            begun.append(1)
            return super().__iter__()

    monkeypatch.setattr(longform, "StoppableStream", Watched)
    monkeypatch.setattr(longform, "BATCH_TOKENS", 100)
    wave = say(list(range(60)), [0.8] * 61)
    engine = ToneEngine()
    (transcript,) = transcribe(engine, [(wave, 16000)], TASK, window=4.0)
    assert transcript.text == words(list(range(60))) and len(engine.batches) > 5 and len(begun) == 2


def test_a_recording_with_a_too_long_header_is_not_read() -> None:
    class Unread(longform.StoppableStream):
        def __iter__(self):
            raise AssertionError("was read")

    file = io.BytesIO()
    soundfile.write(file, np.zeros(48000, np.float32), 16000, format="FLAC")
    with pytest.raises(ValueError, match=r"2 s, found 3\.0 s"):
        Unread(file.getvalue(), 2.0, threading.Event())


def test_tokens_belong_to_segments_and_all_answers_are_counted() -> None:
    wave = say([1, 2, 3, 4, 5, 6], [1.0, 0.05, 0.05, 8.0, 0.05, 0.05, 1.0])

    def counted(answer: Completion, *_: object) -> Completion:
        return replace(
            loop(answer, _[0], 0.0), adapter="speech", prompt_tokens=9, input_tokens={"audio": 5}
        )

    engine = ToneEngine(answer=counted)
    (transcript,) = transcribe(engine, [(wave, 16000)], TASK)
    assert [TOKENIZER.decode(s.tokens).strip() for s in transcript.segments] == [
        "w1 w2 w3",
        "w4 w5 w6",
    ]
    assert all(len(s.tokens) == len(s.logprobs) for s in transcript.segments)
    assert {s.seek for s in transcript.segments} == {0.0}
    requests = len(engine.requests)
    assert requests == 3 and transcript.adapter == "speech"
    assert (transcript.prompt_tokens, transcript.audio_tokens) == (9 * requests, 5 * requests)
    assert transcript.answer_tokens == requests * sum(len(s.tokens) for s in transcript.segments)


def test_cached_prefixes_are_separate_by_salt(engine: Engine) -> None:
    cached: list[int] = []
    real = engine.generate_many

    def watched(*args: Any, **kwargs: Any) -> list[Completion]:
        answers = real(*args, **kwargs)
        cached.append(sum(answer.cached for answer in answers))
        return answers

    engine.generate_many = watched  # type: ignore[method-assign]
    task = replace(TASK, sampling=SamplingParams(max_tokens=2))
    for salt in (b"a", b"b", b"a"):
        transcribe(engine, [(say([1] * 9, [0.1] * 10), 16000)], task, caller=Client(salt=salt))
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_the_frames_of_the_longest_piece_are_reserved_first() -> None:
    """The pieces are of up to 5 s: 498 frames of 80 floats."""
    sizes = list[int]()

    def refuse(count: int) -> None:
        sizes.append(count)
        raise MemoryError

    engine, wave = ToneEngine(), say(list(range(20)), [0.3] * 21)
    transcribe(engine, [(wave, 16000)], TASK, window=5.0, reserve=sizes.append)
    assert 400 * 320 < sizes[0] <= 498 * 320 and len(sizes) == 1
    engine.batches.clear()
    with pytest.raises(MemoryError):
        transcribe(engine, [(wave, 16000)], TASK, window=5.0, reserve=refuse)
    assert engine.batches == [] and sizes[0] == sizes[1]
