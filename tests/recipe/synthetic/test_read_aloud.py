"""Text rows become spoken ones: which are read, by which voice, deterministically, with any engine."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyphi.data.shards import Sample, Shards
from polyphi.media.media import decode_audio
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.services.speech_synthesis import Voice, unavailable
from polyphi_recipe.filters.transcripts import Recogniser, WordErrorRateFilter
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.pipeline import counts
from polyphi_recipe.synthetic.read_aloud import (
    ReadAloud,
    SplitVoices,
    installed,
    query,
    split_voices,
)
from polyphi_recipe.synthetic.voices import unfit
from polyphi_recipe.synthetic.waves import encode
from tests.fixtures.replay import Replay

TONE = encode(0.3 * np.sin(np.arange(16000, dtype=np.float32) / 20))
needs_espeak = pytest.mark.skipif(
    unavailable("espeak-ng") is not None, reason="espeak-ng is not installed"
)


def row(id: str, question: str, language: str = "en", answer: str = "Yes.") -> Sample:
    messages = (Message.user(question), Message.assistant(answer))
    return Sample(id, messages, "mine", "MIT", {"task": "chat", "language": language})


ROWS = [
    row("fit", "Who wrote Faust?"),
    row("deutsch", "Wer hat den Faust geschrieben?", "de"),
    row("kana", "これは なんですか。", "ja"),
    row("kanji", "誰が書きましたか。", "ja"),
    row("table", "Sum this up:\n| a | b |"),
    row("code", "What does print(x[0]) do?"),
    row("address", "What is on https://example.com today?"),
    row("number", "Who called 15551234 yesterday?"),
    row("long", "Why " * 60 + "?"),
    row("marks", "...?"),
    row("other", "Kto napisał Fausta?", "pl"),
    replace(row("turns", "Hi"), messages=row("", "Hi").messages + row("", "And?").messages),
    replace(
        row("heard", ""),
        messages=(Message.user(Audio(TONE), "What?"), Message.assistant("A tone.")),
    ),
]  # fmt: skip
REASONS = {
    "kanji": "unfit to be read: kanji, which espeak-ng can't read",
    "table": "unfit to be read: a table",
    "code": "unfit to be read: code",
    "address": "unfit to be read: an address",
    "number": "unfit to be read: a long number",
    "long": "unfit to be read: too long",
    "marks": "unfit to be read: nothing to say",
    "other": "no voice reads pl",
    "turns": "unfit to be read: not one question and its answer in writing",
    "heard": "unfit to be read: not one question and its answer in writing",
}


def built(
    rows: list[Sample], folder: Path, steps: list[object], name: str = "aloud"
) -> dict[str, list[Sample]]:
    """Build a corpus with every row in both splits; return the samples of its shards."""
    corpus_ = Corpus(
        name, lambda work: ((s, r) for s in work.rows for r in rows), steps=lambda _: steps
    )
    corpus.build(corpus_, Work({"train": 99, "test": 99}, 0, folder, folder / "data"))
    return {s: list(Shards(folder / "data" / name / s)) for s in ("train", "test")}


@needs_espeak
def test_queries_are_read_and_unfit_ones_kept_aside(tmp_path: Path) -> None:
    by_split = built(ROWS, tmp_path, [ReadAloud(installed())])
    for split, samples in by_split.items():
        assert [s.id for s in samples] == ["fit", "deutsch", "kana"]
        for sample, origin in zip(samples, ROWS, strict=False):
            assert sample.prompt[-1].text == "" and sample.answer == origin.answer
            assert sample.meta["question"] == query(origin) and sample.meta["kind"] == "chat"
            [clip] = media(sample.messages, Audio)
            wave, rate = decode_audio(clip.source)
            assert rate == 16000 and abs(len(wave) / rate - sample.meta["seconds"]) < 0.01
            assert sample.meta["lineage"][-1]["step"] == "read aloud", split
    speakers = [{s.meta["speaker"] for s in by_split[split]} for split in by_split]
    assert speakers[0] and not speakers[0] & speakers[1]
    manifest = Shards(tmp_path / "data" / "aloud" / "train").manifest
    [_, step, _] = counts(tmp_path / "data" / "aloud" / "train", manifest["pipeline"])
    for reason in set(REASONS.values()):
        times = list(REASONS.values()).count(reason)
        assert step[f"dropped_{reason}"] == times, reason
    assert step["dropped"] == len(REASONS)


@pytest.mark.long
@needs_espeak
def test_the_same_rows_are_read_the_same(tmp_path: Path) -> None:
    first = built(ROWS[:2], tmp_path / "a", [ReadAloud(installed())])
    assert first == built(ROWS[:2], tmp_path / "b", [ReadAloud(installed())])
    assert first != built(ROWS[:2], tmp_path / "c", [ReadAloud(installed(), seed=1)])
    other = built(ROWS[1::-1], tmp_path / "d", [ReadAloud(installed())])
    for split, rows in first.items():
        # The state of the engines' noise continues from clip to clip; the voice and its speed don't change.
        for one, same in zip(rows, other[split][::-1], strict=True):
            assert (one.id, one.meta["speaker"]) == (same.id, same.meta["speaker"])
            assert one.meta["seconds"] == pytest.approx(same.meta["seconds"], abs=0.1)


@needs_espeak
def test_pictures_and_systems_stay(tmp_path: Path) -> None:
    question = Message.user(Image(b"\x89PNG a"), "What is this?")
    one = replace(
        ROWS[0], messages=(Message.system("Be brief."), question, Message.assistant("A."))
    )
    [spoken] = built([one], tmp_path, [ReadAloud(installed())])["train"]
    assert [m.role for m in spoken.messages] == ["system", "user", "assistant"]
    assert [type(p) for p in spoken.messages[1].parts] == [Image, Audio]


def test_voices_are_held_out_by_name() -> None:
    with pytest.raises(ValueError, match="found espeak-ng m3 in both"):
        split_voices([Voice(variant="m3")], [Voice(language="de", variant="m3")])
    with pytest.raises(ValueError, match="1 for training and 0 "):
        SplitVoices(split_voices([Voice(variant="m3")], [Voice(variant="m4")]).train, ())
    here = {"engine": "endpoint", "where": "http://here/v1"}
    voices = split_voices([Voice(**here, variant="a")], [Voice(**here, variant="b")])
    assert voices.test[0].name == "endpoint http://here/v1 tts b"


def test_an_endpoint_and_a_command_read(tmp_path: Path) -> None:
    clip = tmp_path / "tone.wav"
    clip.write_bytes(TONE)
    command = (
        f"{sys.executable} -c \"import sys; sys.stdout.buffer.write(open('{clip}', 'rb').read())\""
    )
    with Replay(clips={"Who wrote Faust?": TONE}) as replay:
        voices = split_voices(
            [Voice("endpoint", variant="ann", where=replay.where)],
            [Voice("command", where=command)],
        )
        by_split = built(ROWS[:1], tmp_path, [ReadAloud(voices)])
        assert [body["voice"] for body in replay.requests] == ["ann"]
    assert by_split["train"][0].meta["engine"] == "endpoint"
    assert (
        by_split["test"][0].meta["engine"] == "command"
        and by_split["test"][0].meta["seconds"] > 0.9
    )


@needs_espeak
def test_clips_that_nobody_understands_are_dropped_afterwards(tmp_path: Path) -> None:
    """The word error rate filter compares with the words that were read, not with the answer."""
    transcripts = {"en": "who wrote Faust", "de": "quite something else"}
    recognizer = Recogniser("listener", lambda clip, language: transcripts[language])
    by_split = built(
        ROWS[:2], tmp_path, [ReadAloud(installed()), WordErrorRateFilter(recognizer, 0.35)]
    )
    assert [s.id for s in by_split["train"]] == ["fit"]


@needs_espeak
def test_an_endpoint_judges_what_was_read(tmp_path: Path) -> None:
    with Replay(transcripts={b"fLaC": "Who wrote Faust?"}) as replay:
        endpoint = Endpoint(replay.where, "m")
        recognizer = Recogniser(
            "m", lambda clip, language: endpoint.transcribe(clip, language=language)
        )
        by_split = built(
            ROWS[:2], tmp_path, [ReadAloud(installed()), WordErrorRateFilter(recognizer, 0.35)]
        )
        assert len(replay.requests) == 4
    assert [s.id for s in by_split["train"]] == [s.id for s in by_split["test"]] == ["fit"]


def test_unfit() -> None:
    assert unfit("Who wrote Faust?") == ""
    assert unfit("x" * 101) == "too long" and unfit("x" * 101, 200) == ""
