"""Recordings of any length become transcripts that lack nothing and double nothing, or say so."""

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
from tones import WORD, heard, say

from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import Caller
from polyphi.messages import Completion, SamplingParams, TokenLogprob
from polyphi.processing.media import AudioStream
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.transcription import longform
from polyphi.transcription.longform import Task, cut, longest_piece, sections, transcribe
from polyphi.transcription.silence import listen
from polyphi.transcription.transcript import Piece

TASK = Task("Transcribe.")
TOKENIZER = Tokenizer.train(["w1 w2 w3 <sep>"], vocab_size=384)


class Ears(Engine):
    """Stands where the engine stands and writes the tones of its clips down. `answer` may change what it says."""

    context = 4096  # type: ignore[assignment]
    capacity = 1 << 20  # type: ignore[assignment]

    def __init__(self, context: int = 4096, answer: Any = None) -> None:
        self.context, self.answer = context, answer  # type: ignore[misc]
        self.processor = Processor(TOKENIZER)
        self.asked: list[tuple[float, SamplingParams]] = []
        self.together: list[int] = []

    def generate_many(
        self, conversations: Any, *, sampling: Any, adapter: Any, stop: Any, caller: Any
    ) -> list[Completion]:
        found = []
        for messages, its in zip(conversations, sampling, strict=True):
            if stop.is_set():
                raise Stopped
            wave, rate = messages[0].parts[0].source
            self.asked.append((len(wave) / rate, its))
            said = " ".join(heard(wave, rate))
            tokens = tuple(TOKENIZER.encode(said))
            answer = Completion(said, tokens, logprobs=tuple(TokenLogprob(t, -0.5) for t in tokens))
            found.append(self.answer(answer, its, len(wave) / rate) if self.answer else answer)
        self.together.append(len(found))
        return found


def words(numbers: list[int]) -> str:
    return " ".join(f"w{n}" for n in numbers)


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(range(97)),
    st.lists(st.sampled_from([0.02, 0.05, 0.1, 0.3, 0.8]), min_size=30, max_size=90),
    st.sampled_from([5.0, 8.0, 11.0]),
)
def test_pieces_say_together_what_was_said(
    numbers: list[int], pauses: list[float], window: float
) -> None:
    """Whatever is said at whatever pace: cut, heard in pieces and sewn together it's the same words. Where an overlap
    is too short for a whole word, that is told, and nothing is lost."""
    numbers = numbers[: len(pauses)]
    wave = say(numbers, [0.2, *pauses])
    ears = Ears()
    (found,) = transcribe(ears, [(wave, 16000)], TASK, window=window)
    assert max(seconds for seconds, _ in ears.asked) <= window + 0.01
    if any("heard differently" in w for w in found.warnings):
        assert set(found.text.split()) >= {f"w{n}" for n in numbers}
    else:
        assert found.text == words(numbers)
    check_times(found)


def check_times(found: Any) -> None:
    ends = 0.0
    for part in (*found.segments,):
        assert ends <= part.start <= part.end <= found.seconds + 0.01
        ends = part.end
    ends = 0.0
    for word in found.words:
        assert ends <= word.start <= word.end <= found.seconds + 0.01
        ends = word.end
    assert " ".join(s.text for s in found.segments).split() == found.text.split()


def test_overlaps_are_sewn() -> None:
    """No pause is as long as a word: every cut goes through speech, every seam is an overlap."""
    numbers = list(range(90))
    wave = say(numbers, [0.02] * 91)
    (found,) = transcribe(Ears(), [(wave, 16000)], TASK, window=6.0)
    assert found.text == words(numbers) and found.warnings == ()
    pieces = cut(listen(AudioStream((wave, 16000))), 6.0)
    assert len(pieces) > 5 and all(piece.overlaps for piece in pieces[1:])
    assert all(b.start < a.end for a, b in pairwise(pieces))


def test_cuts_lie_in_pauses_where_there_are_any() -> None:
    wave = say(list(range(40)), [0.05, *([0.05] * 9 + [0.9]) * 4])
    pieces = cut(listen(AudioStream((wave, 16000))), 9.0)
    assert len(pieces) > 2 and not any(piece.overlaps for piece in pieces)
    assert pieces[0].start == 0 and pieces[-1].end == pytest.approx(len(wave) / 16000)
    for piece in pieces[:-1]:
        at = round(piece.end * 16000)
        assert np.abs(wave[at - 800 : at + 800]).max() < 0.01


@pytest.mark.parametrize("seconds", [9.9, 10.1, 10.3, 10.6, 20.2, 31.0])
def test_no_piece_is_a_snippet(seconds: float) -> None:
    count = int(seconds / (WORD + 0.05))
    wave = say(list(range(count)), [0.05] * count + [seconds - count * (WORD + 0.05)])
    pieces = cut(listen(AudioStream((wave, 16000))), 10.0)
    assert all(0.5 <= piece.seconds <= 10.0 for piece in pieces)
    assert pieces[-1].end == pytest.approx(seconds, abs=0.01)
    for a, b in pairwise(pieces):
        assert b.start <= a.end


def test_long_silences_are_left_out_and_told() -> None:
    wave = say([1, 2, 3, 4], [15.0, 0.1, 20.0, 0.1, 12.0])
    ears = Ears()
    (found,) = transcribe(ears, [(wave, 16000)], TASK)
    assert found.text == "w1 w2 w3 w4" and sum(s for s, _ in ears.asked) < 6
    assert len(found.warnings) == 3 and found.warnings[0].startswith("0:00.0 to 0:14.")
    assert [round(s.start) for s in found.segments] == [15, 36]
    assert {s.source for s in found.segments} == {"window"}


def test_silence_and_hiss_are_not_transcribed() -> None:
    ears = Ears()
    hiss = 0.1 * np.random.default_rng(0).standard_normal(16000 * 3).astype(np.float32)
    for wave in (np.zeros(16000 * 3, np.float32), hiss):
        (found,) = transcribe(ears, [(wave, 16000)], TASK)
        assert (found.text, found.segments) == ("", ()) and not ears.asked
        assert found.warnings == ("0:00.0 to 0:03.0: silence, or noise without a voice, left out",)


def test_segments_end_with_their_speech_and_know_how_sure_they_are() -> None:
    wave = say([1, 2, 3, 4, 5, 6], [1.0, 0.05, 0.05, 8.0, 0.05, 0.05, 1.0])
    task = replace(TASK, words="estimated")
    (found,) = transcribe(Ears(), [(wave, 16000)], task)
    assert [s.text for s in found.segments] == ["w1 w2 w3", "w4 w5 w6"]
    assert {s.source for s in found.segments} == {"estimated"}  # one piece of eleven seconds
    assert {s.avg_logprob for s in found.segments} == {-0.5}
    truth = [1.0, 1.35, 1.7, 10.0, 10.35, 10.7]
    assert [w.start for w in found.words] == pytest.approx(truth, abs=0.1)
    assert [w.end for w in found.words] == pytest.approx([t + WORD for t in truth], abs=0.1)
    check_times(found)


def loop(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
    if sampling.temperature < 0.4:
        return replace(answer, text="thank you " * 20, finish_reason="length")
    return answer


def test_a_loop_is_asked_for_again_warmer() -> None:
    ears = Ears(answer=loop)
    (found,) = transcribe(ears, [(say([1, 2, 3], [0.1] * 4), 16000)], TASK)
    assert found.text == "w1 w2 w3" and found.warnings == ()
    assert [its.temperature for _, its in ears.asked] == [0.0, 0.2, 0.4]
    assert found.segments[0].temperature == 0.4


def test_a_loop_that_stays_is_told() -> None:
    ears = Ears(answer=lambda answer, *_: replace(answer, text="thank you " * 20))
    (found,) = transcribe(ears, [(say([1, 2, 3], [0.1] * 4), 16000)], TASK)
    assert len(ears.asked) == 5
    assert found.warnings[0].startswith("0:00.0 to 0:01.3: the answer repeats itself at every temp")
    ears.asked.clear()
    own = replace(TASK, sampling=SamplingParams(max_tokens=9))  # taken as it comes
    (found,) = transcribe(ears, [(say([1, 2, 3], [0.1] * 4), 16000)], own)
    assert len(ears.asked) == 1 and "repeats itself" in found.warnings[0]


def test_a_long_loop_is_heard_in_halves() -> None:
    def bored(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
        return replace(answer, text="so " * 40) if seconds > 60 else answer

    numbers = [(5 * i) % 97 for i in range(95)]
    wave = say(numbers, [0.05] + [0.6] * 95)
    ears = Ears(answer=bored)
    (found,) = transcribe(ears, [(wave, 16000)], TASK)
    assert found.text == words(numbers) and found.warnings == ()
    assert round(ears.asked[0][0]) == 86 and len(ears.asked) == 3


def test_an_answer_without_room_gets_more_then_halves_then_a_warning() -> None:
    def short(answer: Completion, sampling: SamplingParams, seconds: float) -> Completion:
        count = sampling.max_tokens // 20  # words that fit
        said = answer.text.split()
        if len(said) <= count:
            return answer
        return replace(answer, text=" ".join(said[:count]), finish_reason="length")

    numbers = list(range(25))
    ears = Ears(answer=short)
    (found,) = transcribe(ears, [(say(numbers, [0.1] + [0.6] * 25), 16000)], TASK)
    assert found.text == words(numbers) and found.warnings == ()
    rooms = [its.max_tokens for _, its in ears.asked]
    assert rooms[1] == 2 * rooms[0] and len(rooms) > 3
    never = Ears(
        answer=lambda a, *_: replace(a, finish_reason="length", tokens=(1,) * 7, logprobs=())
    )
    (found,) = transcribe(never, [(say([1, 2], [0.1] * 3), 16000)], TASK)
    assert found.warnings == (
        "0:00.0 to 0:00.9: the answer was cut after 7 tokens; the end may be missing",
    )


def test_pieces_fit_the_context() -> None:
    ears = Ears(context=400)
    for texts in ("transcript", "both"):
        task = replace(TASK, texts=texts)
        limit = longest_piece(ears, task)
        transcribe(ears, [(say(list(range(60)), [0.1] * 61), 16000)], task)
        prompt = ears.processor.count([longform.Message.user(TASK.prompt)]).total
        for seconds, its in ears.asked:
            assert seconds <= limit + 0.01
            assert prompt + int(np.ceil(seconds * 12.5)) + its.max_tokens <= 400
        ears.asked.clear()
    assert longest_piece(Ears(context=131072), TASK) == 1800
    assert longest_piece(Ears(context=131072), TASK, 30.0) == 30
    with pytest.raises(ValueError, match="a context of 80 tokens holds no second"):
        longest_piece(Ears(context=80), TASK)
    with pytest.raises(ValueError, match="at least 1 s"):
        longest_piece(Ears(), TASK, 0.5)


def test_short_recordings_go_together_and_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [(say([n, n + 1], [0.1] * 3), 16000) for n in range(0, 20, 2)]
    ears, finished = Ears(), list[float]()
    found = transcribe(ears, clips, TASK, tell=finished.append)
    assert [t.text for t in found] == [f"w{n} w{n + 1}" for n in range(0, 20, 2)]
    assert ears.together == [10]
    assert sum(finished) == pytest.approx(sum(len(w) / 16000 for w, _ in clips))
    monkeypatch.setattr(longform, "TOGETHER", 200)
    ears.together.clear()
    assert transcribe(ears, clips, TASK) == found and max(ears.together) < 4


def test_both_texts_and_their_segments() -> None:
    def both(answer: Completion, *_: object) -> Completion:
        said = f"{answer.text} <sep> {answer.text.replace('w', 'v')}"
        return replace(answer, text=said, tokens=(), logprobs=())

    wave = say([1, 2, 3, 4], [0.1, 0.1, 12.5, 0.1, 0.1])
    (found,) = transcribe(Ears(answer=both), [(wave, 16000)], replace(TASK, texts="both"))
    assert (found.text, found.translation) == ("w1 w2 w3 w4", "v1 v2 v3 v4")
    assert [(s.text, s.translation) for s in found.segments] == [
        ("w1 w2", "v1 v2"),
        ("w3 w4", "v3 v4"),
    ]
    (found,) = transcribe(Ears(), [(wave, 16000)], replace(TASK, texts="both"))
    assert found.translation is None and any("wrote no <sep>" in w for w in found.warnings)
    (found,) = transcribe(Ears(), [(wave, 16000)], replace(TASK, texts="translation"))
    assert (found.text, found.translation) == ("", "w1 w2 w3 w4")


def test_a_change_of_script_is_told() -> None:
    def drifting(answer: Completion, *_: object) -> Completion:
        return replace(answer, text="谢谢观看") if "w3" in answer.text else answer

    wave = say([1, 2, 3, 4, 5, 6], [0.1, 0.1, 12.0, 12.0, 0.1, 0.1, 0.1])
    (found,) = transcribe(Ears(answer=drifting), [(wave, 16000)], TASK)
    assert [w for w in found.warnings if "written in Han or kana letters, not Latin" in w]
    (found,) = transcribe(
        Ears(), [(say([1], [0.1] * 2), 16000)], replace(TASK, script="Han or kana")
    )
    assert "written in Latin letters, not Han or kana" in found.warnings[0]


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
    whole = next(sections(AudioStream((wave, rate)), [Piece(0.0, 10.0)]))
    found = list(sections(AudioStream((wave, rate)), pieces))
    for piece, (part, its) in zip(pieces, found, strict=True):
        first, last = (round(t * its) for t in (piece.start, piece.end))
        assert its == whole[1] and np.array_equal(part, whole[0][first:last])


def test_a_long_recording_is_never_whole_in_memory() -> None:
    """What `sections` holds: a piece and a block."""
    held = 0

    class Watched(AudioStream):
        def __iter__(self):
            for _ in range(200):
                yield np.zeros(16000, np.float32)

    stream = Watched((np.zeros(16000 * 200, np.float32), 16000))
    for wave, _ in sections(stream, [Piece(float(i), i + 10.0) for i in range(0, 190, 10)]):
        held = max(held, len(wave), wave.base.size if wave.base is not None else 0)
    assert 160_000 <= held <= 16000 * 11


def fickle(rng: random.Random) -> Any:
    """Answers that loop, break off, lack words at their ends or hold others, now and then."""

    def answer(found: Completion, its: SamplingParams, seconds: float) -> Completion:
        said = found.text.split()
        if seconds > 60 or (rng.random() < 0.2 and its.temperature < 0.8):
            return replace(found, text="so " * 40, tokens=(), logprobs=())
        broken = rng.random() < 0.2
        said = said[: len(said) // 2] if broken else said
        said = [rng.choice(["hm", "字", w]) if rng.random() < 0.1 else w for w in said]
        if rng.random() < 0.5:
            said.insert(rng.randrange(len(said) + 1), rng.choice(["<sep>", "", "字字"]))
        text = rng.choice(["", " ", "\n"]) + " ".join(said) + rng.choice(["", " "])
        reason = "length" if broken else "stop"
        return Completion(text, finish_reason=reason)

    return answer


@settings(max_examples=20, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from([0.02, 0.05, 0.3, 11.0]), min_size=8, max_size=60),
    st.sampled_from([3.0, 6.0, None]),
    st.sampled_from(["transcript", "translation", "both"]),
)
def test_what_is_followed_is_the_text(
    rng: random.Random, pauses: list[float], window: float | None, texts: Any
) -> None:
    """Whatever is asked again, halved, sewn or left out: the pieces of text, in the order they come, are the text."""
    wave = say([rng.randrange(90) for _ in pauses], [0.1, *pauses])
    ears, heard = Ears(answer=fickle(rng)), list[str]()
    task = replace(TASK, texts=texts)
    (found,) = transcribe(ears, [(wave, 16000)], task, window=window, follow=heard.append)
    wanted = found.text if texts == "transcript" else found.translation or ""
    assert "".join(heard) == wanted and "" not in heard


def test_text_comes_as_soon_as_it_is_certain() -> None:
    """Pieces are answered one, two, four and eight at a time; behind a pause all of a piece is certain, before an
    overlap all but its last words."""
    wave = say(list(range(40)), [0.05, *([0.05] * 9 + [0.9]) * 4])
    ears, heard = Ears(), list[tuple[int, str]]()

    def follow(text: str) -> None:
        heard.append((len(ears.together), text))

    (found,) = transcribe(ears, [(wave, 16000)], TASK, window=5.0, follow=follow)
    assert ears.together[:2] == [1, 2] and max(ears.together) <= longform.FOLLOWED
    assert heard[0] == (1, words(list(range(10)))) and len(heard) == sum(ears.together)
    heard.clear()
    ears.together.clear()
    (found,) = transcribe(Ears(), [(say(list(range(90)), [0.02] * 91), 16000)], TASK, window=20.0)
    (again,) = transcribe(
        ears, [(say(list(range(90)), [0.02] * 91), 16000)], TASK, window=20.0, follow=follow
    )
    assert found == again and "".join(text for _, text in heard) == found.text
    assert heard[0][0] == 1 and heard[0][1] == words(list(range(len(heard[0][1].split()))))


def test_who_stops_is_done_at_the_next_block_or_step() -> None:
    stop = threading.Event()
    ears = Ears(answer=lambda answer, *_: stop.set() or answer)
    with pytest.raises(Stopped):
        transcribe(ears, [(say(list(range(40)), [0.5] * 41), 16000)], TASK, window=5.0, stop=stop)
    assert len(ears.asked) == 1
    ears.asked.clear()
    with pytest.raises(Stopped):  # while it is listened to
        transcribe(ears, [(np.zeros(16000 * 60, np.float32), 16000)], TASK, stop=stop)
    assert not ears.asked


def test_a_recording_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside listening; and from its beginning again where an earlier piece is asked again."""
    begun: list[int] = []

    class Watched(longform.Recording):
        def __iter__(self):
            begun.append(1)
            return super().__iter__()

    monkeypatch.setattr(longform, "Recording", Watched)
    monkeypatch.setattr(longform, "TOGETHER", 100)
    wave = say(list(range(60)), [0.8] * 61)
    ears = Ears()
    (found,) = transcribe(ears, [(wave, 16000)], TASK, window=4.0)
    assert found.text == words(list(range(60))) and len(ears.together) > 5 and len(begun) == 2


def test_a_header_that_tells_too_much_is_not_read() -> None:
    class Deaf(longform.Recording):
        def __iter__(self):
            raise AssertionError("was read")

    file = io.BytesIO()
    soundfile.write(file, np.zeros(48000, np.float32), 16000, format="FLAC")
    with pytest.raises(ValueError, match=r"may last 2 s, found a header that says 3\.0 s"):
        Deaf(file.getvalue(), 2.0, threading.Event())


def test_tokens_belong_to_segments_and_all_answers_are_counted() -> None:
    wave = say([1, 2, 3, 4, 5, 6], [1.0, 0.05, 0.05, 8.0, 0.05, 0.05, 1.0])

    def counted(answer: Completion, *_: object) -> Completion:
        return replace(loop(answer, _[0], 0.0), adapter="speech", prompt_tokens=9, audio_tokens=5)

    ears = Ears(answer=counted)
    (found,) = transcribe(ears, [(wave, 16000)], TASK)
    assert [TOKENIZER.decode(s.tokens).strip() for s in found.segments] == ["w1 w2 w3", "w4 w5 w6"]
    assert all(len(s.tokens) == len(s.logprobs) for s in found.segments)
    assert {s.seek for s in found.segments} == {0.0}
    asked = len(ears.asked)
    assert asked == 3 and found.adapter == "speech"
    assert (found.prompt_tokens, found.audio_tokens) == (9 * asked, 5 * asked)
    assert found.answer_tokens == asked * sum(len(s.tokens) for s in found.segments)


def test_what_is_remembered_stays_with_its_salt(engine: Engine) -> None:
    cached: list[int] = []
    real = engine.generate_many

    def watched(*given: Any, **named: Any) -> list[Completion]:
        answers = real(*given, **named)
        cached.append(sum(answer.cached for answer in answers))
        return answers

    engine.generate_many = watched  # type: ignore[method-assign]
    task = replace(TASK, sampling=SamplingParams(max_tokens=2))
    for salt in (b"a", b"b", b"a"):
        transcribe(engine, [(say([1] * 9, [0.1] * 10), 16000)], task, caller=Caller(salt=salt))
    assert cached[:2] == [0, 0] and cached[2] > 0
