"""Long recordings: their length, memory, transcript, and a teacher's summaries."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.media.media import decode_audio
from polyphi.processing.audio import frames
from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.messages import media
from polyphi.types.parts import Audio
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.services.speech_synthesis import Voice, unavailable
from polyphi_recipe.corpora import speech_summary
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import real_text
from polyphi_recipe.stages import longest_audio, sizes
from polyphi_recipe.syntheses.syntheses import SPEECH_SUMMARY
from polyphi_recipe.syntheses.synthesis_step import SynthesisStep, Use
from polyphi_recipe.synthetic.read_aloud import installed
from polyphi_recipe.synthetic.recordings import ReadPages, record
from tests.fixtures.replay import Replay

pytestmark = pytest.mark.skipif(
    unavailable("espeak-ng") is not None, reason="espeak-ng is not installed"
)
STORY = "Paragraph {} tells how a ship left the harbour in the morning and came home in the evening with fish."


@pytest.mark.long
def test_half_an_hour_is_one_clip_in_little_memory(tmp_path: Path) -> None:
    """In a separate process: memory grows by the compressed bytes, not by the samples."""
    program = f"""
import json, re, sys, time
from pathlib import Path
from polyphi_recipe.synthetic.recordings import record
from polyphi_eval.services.speech_synthesis import TTSPool, Voice

def peak():
    # getrusage's peak is that of the process that started this one, too.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

tts_pool, story = TTSPool(), ({STORY!r}.format(i % 900) for i in range(10_000))
voices = [Voice(variant="m1"), Voice(variant="f2")]
record(story, voices, seconds=120, tts_pool=tts_pool)
before, begun = peak(), time.perf_counter()
made = record(story, voices, tts_pool=tts_pool)
took = time.perf_counter() - begun
Path(sys.argv[1]).write_bytes(made.audio)
print(json.dumps([made.seconds, took, peak() - before, len(made.paragraphs)]))
"""
    clip = tmp_path / "clip.flac"
    process = subprocess.run(
        [sys.executable, "-c", program, str(clip)], capture_output=True, text=True, check=True
    )
    seconds, took, grown, count = json.loads(process.stdout)
    wave, rate = decode_audio(clip)  # within `decode_audio`'s limit
    assert rate == 16_000 and abs(len(wave) / rate - seconds) < 0.01
    assert 1780 < seconds <= 1800 and count > 100
    tokens, megabytes = (
        AudioLayout(frames(len(wave), rate), "speech").tokens,
        clip.stat().st_size / 1e6,
    )
    print(f"\n{seconds:.0f} s of speech, {tokens} tokens, made in {took:.1f} s")
    print(f"{megabytes:.0f} MB of FLAC, {grown:.0f} MB more memory at its peak")
    assert 22_000 < tokens <= 22_500
    assert grown < 2 * megabytes + 5 < 4 * len(wave) / 1e6


def test_voices_take_turns_and_nothing_is_cut_off() -> None:
    story = [STORY.format(i) for i in range(9)]
    recording = record(story, [Voice(variant="m1"), Voice(variant="f2")], seconds=20)
    wave, rate = decode_audio(recording.audio)
    assert (
        1 < len(recording.paragraphs) < 9
        and list(recording.paragraphs) == story[: len(recording.paragraphs)]
    )
    assert recording.seconds <= 20 and recording.audio.startswith(b"fLaC")
    assert np.abs(wave[-rate // 2 :]).max() > 0.01, "it ends with speech"
    with pytest.raises(ValueError, match="within 1 s"):
        record(story, [Voice()], seconds=1)


PAGE = shards.document(
    "page-1",
    "\n".join([*(STORY.format(i) for i in range(6)), "See https://example.com for | a table |."]),
    "pages",
    "CC0-1.0",
    language="en",
)


def summary(form: str, limit: int, answer: str) -> dict[str, object]:
    return {"question": f"In {form}, please?", "form": form, "limit": limit, "answer": answer}


def test_a_page_becomes_a_recording_and_a_teacher_sums_it_up(tmp_path: Path) -> None:
    pages = [PAGE, shards.document("page-2", "x = [1]", "pages", "CC0-1.0", language="en")]
    pages.append(
        shards.document("page-3", "Bardzo ładna strona.", "pages", "CC0-1.0", language="pl")
    )

    def build(work: Work) -> Iterator[tuple[str, Sample]]:
        return ((split, page) for split in work.rows for page in pages)

    answers = [
        summary("words", 9, "A ship brings fish home."),
        summary("words", 3, "A ship brings fish."),
    ]
    with Replay({"a ship left the harbour": {"summaries": answers}}) as replay:
        steps = [
            ReadPages(installed(), longest=60),
            SynthesisStep(
                [Use(SPEECH_SUMMARY, partial(Endpoint, replay.where, "m"))], tmp_path / "work"
            ),
        ]
        for name, used in (("read", steps[:1]), ("told", steps)):
            corpus_ = Corpus(name, build, steps=lambda work, used=used: used)
            corpus.build(corpus_, Work({"train": 9, "test": 9}, 0, tmp_path, tmp_path / "data"))
        assert isinstance(replay.requests[0]["messages"][0]["content"], str), (
            "the teacher receives text"
        )
    for split in ("train", "test"):
        [transcribed], [summarized] = (
            list(Shards(tmp_path / "data" / n / split)) for n in ("read", "told")
        )
        assert (
            transcribed.answer
            == transcribed.meta["transcript"]
            == "\n".join(PAGE.answer.split("\n")[:6])
        )
        assert 20 < transcribed.meta["seconds"] <= 60 and transcribed.licence == "CC0-1.0"
        assert (summarized.messages[0].text, summarized.answer) == (
            "In words, please?",
            answers[0]["answer"],
        )
        [clip] = media(summarized.messages, Audio)
        assert abs(len(decode_audio(clip.source)[0]) / 16_000 - summarized.meta["seconds"]) < 0.01
        steps_of = [step["step"] for step in summarized.meta["lineage"]]
        assert steps_of == ["read aloud", "speech_summary"]


def test_a_recording_is_no_longer_than_half_an_hour() -> None:
    with pytest.raises(ValueError, match=r"1800 s; .*found 0 and 1801"):
        ReadPages(installed(), longest=1801)


def test_long_rows_hold_long_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`speech_summary` at a size whose rows have the capacity; nano's don't."""
    assert longest_audio(sizes.NANO) < speech_summary.LONG_SECONDS
    assert longest_audio(sizes.LAB) == 1800
    pages = {
        f"p/{i}": real_text.Page(f"p/{i}", f"Heading number {i}", tuple((str(k), STORY.format(k)) for k in range(9)))
        for i in range(60)
    }  # fmt: skip
    monkeypatch.setattr(speech_summary, "help_pages", lambda language, work: pages)
    monkeypatch.setattr(speech_summary, "LONG_EVERY", 2)
    monkeypatch.setattr(speech_summary, "LONG_SECONDS", 60.0)
    work = Work({"train": 2}, 0, tmp_path, tmp_path, report=lambda line: None, seconds=90.0)
    short, long = (s for _, s in speech_summary.corpus.build(work))
    assert short.meta["task"] == "speech_summary" and short.meta["seconds"] < 20
    topics = long.answer.split("\n")
    assert 1 <= len(topics) == long.meta["transcript"].count("Heading number")
    assert all(t + "." in long.meta["transcript"].split("\n") for t in topics)
    assert 45 < long.meta["seconds"] <= 90
    assert long.licence == "MPL-2.0"
