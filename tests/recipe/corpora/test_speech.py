"""Speech corpora: samples, splits, balance, determinism, and the result without engines."""

import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.media.media import decode_audio
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi_eval.services.speech_synthesis import unavailable
from polyphi_recipe.corpora import vision_speech
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import packages
from polyphi_recipe.synthetic import speech, stamps, waves
from tests.fixtures.variants import few

pytestmark = pytest.mark.skipif(
    unavailable("espeak-ng") is not None, reason="espeak-ng is not installed"
)
NAMES = (
    "asr",
    "ast",
    "sqa",
    "speech_summary",
    "audio_understanding",
    "audio_safety",
    "vision_speech",
)
QUESTIONS = (
    "How many circles are there?",
    "What digit is this?",
    "Quel est ce chiffre ?",
    "Solve: x = {3}",
)
ROWS = {
    "asr": {"train": 160, "test": 48},
    "sqa": {"train": 40, "test": 96},
    "audio_understanding": {"train": 24, "test": 96},
    "speech_summary": {"train": 8, "test": 6},
}
"""Numbers of rows where they aren't those of `workspace`."""
SENSITIVE = re.compile(
    r"\b(gender|sex|male|female)\b|\b(man|woman) or (a )?(man|woman)\b", re.IGNORECASE
)
"""Attributes of a person that no question may ask for (report 5.2)."""


def without_packages(patch: pytest.MonkeyPatch) -> None:
    """Packages are unavailable, so that these tests run anywhere in seconds."""
    for module in (speech, packages, stamps.packages):
        patch.setattr(module, "unpack", lambda name, cache, report=print: None)


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)


Built = Callable[[str], dict[str, list[Sample]]]


def workspace(folder: Path) -> Work:
    """Return a workspace with an `image_qa` corpus."""
    pixel = b"\x89PNG not looked at"

    def picture(split: str, i: int) -> Sample:
        messages = (
            Message.user(Image(pixel), Text(QUESTIONS[i % 4])),
            Message.assistant(str(i % 10)),
        )
        return Sample(
            f"{split}-{i}", messages, "polyphi", "MIT", {"task": "digit", "language": "en"}
        )

    for split, rows in (("train", 40), ("test", 12)):
        shards.write(
            folder / "image_qa" / split, (picture(split, i) for i in range(rows)), pipeline="p"
        )
    return Work(
        rows={"train": 24, "test": 16},
        seed=1,
        cache=folder,
        data=folder,
        report=lambda text: None,
    )


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return workspace(tmp_path)


def built(name: str, work: Work) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {split: [] for split in work.rows}
    for split, sample in importlib.import_module(f"polyphi_recipe.corpora.{name}").corpus.build(
        work
    ):
        samples[split].append(sample)
    return samples


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The splits of a corpus, made once for the tests that only look at them."""
    work = workspace(tmp_path_factory.mktemp("shared"))

    @cache
    def splits(name: str) -> dict[str, list[Sample]]:
        with pytest.MonkeyPatch.context() as patch:
            without_packages(patch)
            return built(name, replace(work, rows=ROWS.get(name, work.rows)))

    return splits


def clips(sample: Sample) -> list[bytes]:
    return [p.source for m in sample.messages for p in m.parts if isinstance(p, Audio)]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_clips_with_answers(name: str, shared: Built) -> None:
    splits = shared(name)
    for split, samples in splits.items():
        assert len(samples) == ROWS.get(name, {"train": 24, "test": 16})[split]
        assert len({s.id for s in samples}) == len(samples)
        for sample in samples:
            assert [m.role for m in sample.messages] == ["user", "assistant"] and sample.answer
            assert sample.meta["task"] and sample.meta["language"] and sample.licence
            texts = [m.text for m in sample.messages]
            assert not SENSITIVE.search(" ".join([*texts, json.dumps(sample.meta)]))
            for data in clips(sample):
                wave, rate = decode_audio(data)
                assert rate == 16000 and np.abs(wave).max() > 0.01
                assert abs(len(wave) / rate - sample.meta["seconds"]) < 0.01
            assert len(clips(sample)) == (sample.meta["task"] != "written_question")
    speakers = {
        s: {x.meta["speaker"] for x in samples if "speaker" in x.meta}
        for s, samples in splits.items()
    }
    assert not speakers["train"] & speakers["test"]
    assert {x.meta.get("engine") for x in splits["train"]} <= {"espeak-ng", None}


@pytest.mark.parametrize("name", few(NAMES, 2))
def test_the_same_seed_gives_the_same_samples(name: str, work: Work) -> None:
    few = replace(work, rows={"train": 6, "test": 4})
    assert built(name, few) == built(name, few)
    assert built(name, few) != built(name, replace(few, seed=2))


def test_recognition_has_every_kind_and_voice(shared: Built) -> None:
    splits = shared("asr")
    kinds = {"digits", "numbers", "words", "questions"}
    assert {s.meta["task"] for s in splits["train"]} == {*kinds, "requests"}
    assert all(s.prompt[-1].text == "Transcribe the audio clip into text." for s in splits["train"])
    groups = Counter((s.meta["task"], s.meta["voice"]) for s in splits["test"])
    voices = ("espeak_unseen",) + (("flite_slt",) if unavailable("flite") is None else ())
    assert set(groups) == {(kind, voice) for kind in kinds for voice in voices}
    assert max(groups.values()) - min(groups.values()) <= 8, (
        "groups take turns, so that few rows still hold all"
    )
    digits = [s.answer for s in splits["train"] if s.meta["task"] == "digits"]
    assert all(a.isdigit() for a in digits), "digits are written '314'"
    assert len({s.meta["language"] for s in splits["train"]}) == 8


def test_both_forms_of_translation_share_a_clip(shared: Built) -> None:
    test = shared("ast")["test"]
    for direct, chain in zip(test[::2], test[1::2], strict=True):
        assert clips(direct) == clips(chain)
        assert (direct.meta["cot"], chain.meta["cot"]) == (False, True)
        assert "<sep>" not in direct.answer and chain.answer.endswith(f" <sep> {direct.answer}")
        assert direct.prompt[-1].text.startswith("Translate the audio to ")
        assert "Use <sep> as a separator" in chain.prompt[-1].text
        assert (
            "en" in (direct.meta["language"], direct.meta["to"])
            and direct.meta["language"] != direct.meta["to"]
        )


def test_spoken_queries_come_without_text(shared: Built) -> None:
    for sample in shared("sqa")["train"]:
        assert (sample.prompt[-1].text == "") == (sample.meta["task"] != "clip")


@pytest.mark.parametrize(
    ("name", "task"),
    few([("sqa", "yes_no"), ("audio_understanding", "beeps"),
     ("audio_understanding", "language"), ("audio_understanding", "speech"), ("audio_understanding", "sound")], 2),
)  # fmt: skip
def test_test_answers_are_balanced(name: str, task: str, shared: Built) -> None:
    test = shared(name)["test"]
    counts = Counter(s.answer for s in test if s.meta["task"] == task)
    assert len(counts) > 1 and max(counts.values()) - min(counts.values()) <= 1, counts


def test_half_of_the_spoken_requests_are_harmful(shared: Built) -> None:
    test = shared("audio_safety")["test"]
    assert sum(s.meta["refuse"] for s in test) == len(test) / 2
    assert all(not s.prompt[-1].text for s in test)


def test_beeps_can_be_counted() -> None:
    """The number of loud parts of the audio is the answer."""
    module = importlib.import_module("polyphi_recipe.corpora.audio_understanding")
    for count in range(1, 6):
        sound = module.beep(module.Random(count), "test")
        wave = waves.join([sound] * count, [0.1] * (count - 1))
        loud = np.square(wave[: len(wave) // 160 * 160].reshape(-1, 160)).mean(1) > 1e-4
        assert int((np.diff(np.r_[0, loud.astype(int)]) == 1).sum()) == count


def test_pieces_of_music_are_on_one_side(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = work.cache / "usr/share/asterisk/moh"
    folder.mkdir(parents=True)
    wave = 0.5 * np.sin(np.arange(5 * waves.RATE) / 9)
    for name in ("a", "b", speech.TEST_MUSIC):
        soundfile.write(folder / f"{name}.wav", wave, waves.RATE)
    monkeypatch.setattr(speech, "_wideband", lambda: False)
    monkeypatch.setattr(
        speech, "unpack", lambda name, *_: work.cache if "moh-opsound" in name else None
    )
    splits = built("audio_understanding", replace(work, rows={"train": 200, "test": 60}))
    music = {
        split: [s for s in samples if s.meta["task"] == "music"]
        for split, samples in splits.items()
    }
    assert Counter(s.answer for s in music["test"]) == {"yes": 5, "no": 5}
    pieces = {
        split: {s.meta["piece"] for s in samples if s.answer == "yes"}
        for split, samples in music.items()
    }
    assert pieces == {"train": {"a", "b"}, "test": {speech.TEST_MUSIC}}
    assert {s.licence for s in music["train"] if s.answer == "yes"} == {"CC-BY-SA-3.0"}
    assert max(s.meta["seconds"] for s in music["test"]) < 3


def test_no_question_asks_for_the_speaker_s_gender() -> None:
    """The code of all corpora and the held-out tasks, because few rows don't show each question."""
    assert SENSITIVE.search("Is a man or a woman speaking?")
    recipe = Path(vision_speech.__file__).parents[1]
    files = [
        path
        for folder in ("corpora", "synthetic")
        for path in (recipe / folder).iterdir()
        if path.suffix in (".py", ".json") and path.name != "reasoning.py"  # the gender of nouns
    ]
    assert len(files) > 40
    for path in (*files, recipe.parent / "polyphi_eval/heldout.json"):
        assert not SENSITIVE.search(path.read_text(encoding="utf-8")), path


# Vision and speech together


def test_questions_that_cannot_be_read_out_are_left_out(shared: Built) -> None:
    splits = shared("vision_speech")
    for sample in splits["train"]:
        kinds = [type(p) for p in sample.prompt[-1].parts]
        assert kinds == [Image, Audio] and sample.prompt[-1].text == ""
        assert sample.meta["question"] in QUESTIONS[:3] and sample.meta["filter"] == "none"
        french = sample.meta["question"].startswith("Quel")
        assert sample.meta["spoken"] == ("fr" if french else "en")
        assert f" {'fr' if french else 'en'}" in sample.meta["speaker"].replace("gmw/en", "en")
    for spoken, written in zip(splits["test"][::2], splits["test"][1::2], strict=True):
        assert (spoken.meta["task"], written.meta["task"]) == (
            "spoken_question",
            "written_question",
        )
        assert (
            spoken.meta["image_qa"] == written.meta["image_qa"] and spoken.answer == written.answer
        )
        assert written.prompt[-1].text == spoken.meta["question"] and not clips(written)


def filtered_rows(
    messages: list[str], recognize: Callable[[bytes], str] | None, work: Work
) -> list[Sample]:
    models = {} if recognize is None else {"speech_0_aed": recognize}
    return built(
        "vision_speech", replace(work, models=models, report=messages.append, rows={"train": 24})
    )["train"]


def test_a_good_recognizer_filters(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jiwer")
    texts: dict[bytes, str] = {}
    speak = vision_speech.speak

    def speak_and_record(*args: object) -> vision_speech.SpokenQuestion:
        clip = speak(*args)  # type: ignore[arg-type]
        texts[clip.audio] = "" if clip.text.startswith("What digit") else clip.text
        return clip

    monkeypatch.setattr(vision_speech, "speak", speak_and_record)
    messages: list[str] = []
    train = filtered_rows(messages, lambda audio: texts[audio], work)
    assert train and all("digit" not in s.meta["question"] for s in train)
    assert all(s.meta["wer"] == 0 and s.meta["filter"].startswith("word error rate") for s in train)
    assert len(messages) == 1 and "kept" in messages[0]


def test_a_poor_recognizer_does_not_filter(work: Work) -> None:
    pytest.importorskip("jiwer")
    messages: list[str] = []
    train = filtered_rows(messages, lambda audio: "quite something else", work)
    assert len(train) == 24 and all(s.meta["filter"] == "poor recogniser" for s in train)
    assert len(messages) == 1 and "not filtered" in messages[0]


# Without engines


def test_without_engines_recordings_still_serve_or_a_line_says_why(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    reader = speech.Reader("somebody", "fr", "train", "asterisk-prompt-de", {})
    monkeypatch.setattr(speech, "unavailable", lambda engine: f"{engine} is not installed")
    monkeypatch.setattr(speech, "readers", lambda work, split: [reader])
    for name in ("sqa", "speech_summary", "audio_safety", "vision_speech"):
        assert built(name, replace(work, report=messages.append)) == {"train": [], "test": []}
    assert sum("apt install espeak-ng" in line for line in messages) == 8
    monkeypatch.setattr(speech, "readers", lambda work, split: [])
    with pytest.raises(ValueError, match="apt install espeak-ng"):
        built("asr", work)
