"""Questions read aloud: kept by text and voice, gone on with, listened to."""

import io
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from polyphi import cli
from polyphi.eval import read_aloud, spoken
from polyphi.eval.read_aloud import SpeechCache, synthesise, voice_of
from polyphi.eval.sources import Data, Missing
from polyphi.eval.spoken import with_options
from polyphi.messages import Audio, Image, Message, Text
from polyphi.services.speech_synthesis import TTSPool, Voice

ROWS: list[Mapping[str, Any]] = [
    {"id": "a", "text": "One.", "answer": "1"},
    {"id": "b", "text": ["Two.", "And three?"], "language": "en"},
    {"id": "c", "text": "Vier.", "language": "de", "file": "de.jsonl"},
]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What engines were asked to say, and by whom; they answer with a short tone."""
    asked: list[tuple[str, str]] = []

    class TTSPool:
        def close(self) -> None:
            pass

        def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
            asked.append((text, f"{voice.language} {voice.variant}"))
            if text == "stop":
                raise KeyboardInterrupt
            return np.full(4000, 0.1, np.float32), 16_000

    monkeypatch.setattr(spoken, "TTSPool", TTSPool)
    spoken.synthesize.cache_clear()
    yield asked
    spoken.synthesize.cache_clear()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_what_they_hold_and_get_clips(tmp_path: Path, said: list[Any]) -> None:
    paths = synthesise(ROWS, SpeechCache(tmp_path))
    assert [p.name for p in paths] == ["questions.jsonl", "de.jsonl"]
    first, second = lines(tmp_path / "questions.jsonl")
    assert (first["answer"], first["voice"], len(second["audio"])) == ("1", "espeak-ng", 2)
    for file in (first["audio"], *second["audio"], lines(tmp_path / "de.jsonl")[0]["audio"]):
        assert soundfile.info(tmp_path / file).samplerate == 16_000
    assert said[-1] == ("Vier.", "de ")


def test_what_was_said_is_not_said_again(tmp_path: Path, said: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        synthesise([*ROWS[:2], {"text": "stop"}], SpeechCache(tmp_path))
    assert not (tmp_path / "questions.jsonl").exists()
    with (tmp_path / "clips.jsonl").open("a") as file:
        file.write('{"file": "clips/cut')
    synthesise(ROWS, studio := SpeechCache(tmp_path))
    assert [text for text, _ in said] == ["One.", "Two.", "And three?", "stop", "Vier."]
    assert studio.new == 1 and len(studio.used) == 4
    synthesise(ROWS, studio := SpeechCache(tmp_path))
    assert studio.new == 0 and len(said) == 5
    next((tmp_path / "clips").glob("*.flac")).unlink()
    synthesise(ROWS, studio := SpeechCache(tmp_path))
    assert studio.new == 1


def test_voices_take_turns_and_flite_speaks_english_only(tmp_path: Path, said: list[Any]) -> None:
    voices = [voice_of("espeak-ng:f2"), voice_of("flite:slt")]
    rows = [{"text": f"Text {n}."} for n in range(4)] + [{"text": "Fünf.", "language": "de"}]
    synthesise(rows, SpeechCache(tmp_path, voices))
    assert [who for _, who in said] == ["en f2", "en slt", "en f2", "en slt", "de f2"]
    with pytest.raises(ValueError, match=r"question 0: flite speaks only English.*German"):
        synthesise(rows[-1:], SpeechCache(tmp_path, voices[1:]))


def test_a_clip_that_is_not_understood_is_tried_by_the_other_voices(
    tmp_path: Path, said: list[Any]
) -> None:
    heard: list[str] = []
    answers = {"f1": "something else entirely", "f2": "One two tree", "f3": "nothing at all here"}

    def hear(clip: bytes, language: str) -> str:
        assert soundfile.read(io.BytesIO(clip))[1] == 16_000
        heard.append(language)
        return answers[said[-1][1].split()[1]]

    voices = [replace(Voice(), variant=variant) for variant in answers]
    rows = [{"text": "One two three."}]
    studio = SpeechCache(tmp_path, voices, transcribe=hear, worst=0.35)
    synthesise(rows, studio)
    assert [who for _, who in said] == ["en f1", "en f2"] and heard == ["en", "en"]
    assert studio.error_rate == pytest.approx(1 / 3)
    assert lines(tmp_path / "questions.jsonl")[0]["voice"] == "espeak-ng f2"
    # With a stricter bound the third one tries, and the best one still is the second.
    studio = SpeechCache(tmp_path, voices, transcribe=hear, worst=0.1)
    synthesise(rows, studio)
    assert [who for _, who in said][2:] == ["en f3"] and len(heard) == 3
    assert lines(tmp_path / "questions.jsonl")[0]["voice"] == "espeak-ng f2"
    assert "WER 33.3 % (1 clips above 10 %)" in studio.summary()


def test_pictures_become_files(tmp_path: Path, said: list[Any]) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff1")
    shown = [Image(b"\x89PNG1"), b"\x89PNG1", tmp_path / "picture"]
    synthesise(
        [{"text": "What?", "image": image} for image in shown], SpeechCache(tmp_path / "set")
    )
    found = [row["image"] for row in lines(tmp_path / "set/questions.jsonl")]
    assert found[0] == found[1] != found[2] and found[2].endswith(".jpg")
    assert (tmp_path / "set" / found[0]).read_bytes() == b"\x89PNG1"


def test_options_are_read_with_their_letters() -> None:
    assert with_options("Which?", ["red", "It is blue."]) == "Which?\nA. red.\nB. It is blue."
    assert with_options("どれ", ["赤"]) == "どれ.\nA. 赤."


def test_voices_are_told_in_a_word() -> None:
    assert voice_of("espeak-ng") == Voice()
    assert voice_of("flite") == Voice("flite", variant="slt")
    assert voice_of("http://h/v1#tts-1:alloy") == Voice(
        "endpoint", variant="alloy", where="http://h/v1", model="tts-1"
    )
    assert voice_of("say {language} {text}").engine == "command"
    with pytest.raises(ValueError, match="--voice piper: expected espeak-ng, flite"):
        voice_of("piper")


def test_japanese_is_read_as_kana() -> None:
    pytest.importorskip("ipadic")
    text = spoken._readable("東京は首都ですか？\nA. はい", "ja", Voice(language="ja"))
    assert text == "トウキョウハシュトデスカ？\nA. ハイ"
    assert spoken._readable("東京", "ja", Voice("endpoint", where="http://h/v1")) == "東京"
    assert spoken._readable("东京", "zh", Voice(language="zh")) == "东京"


@pytest.fixture
def transcriber() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"text": "Say hello."}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()


def test_the_command_reads_a_benchmarks_questions_aloud(
    tmp_path: Path, transcriber: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from polyphi.eval.benchmarks.speech import mtbench_spoken

    mtbench_spoken.benchmark.write_fixtures(tmp_path / "texts")
    command = ["eval", "synthesise", "mtbench_spoken", "--data", str(tmp_path / "data")]
    command += ["--texts", str(tmp_path / "texts"), "--listener", f"{transcriber}#ears"]
    cli.main(command)
    told = " ".join(capsys.readouterr().out.split())
    assert "mtbench_spoken: 4 clips (4 new)" in told and "WER" in told
    assert len(list(mtbench_spoken.load(Data(tmp_path / "data")))) == 2
    held = lines(tmp_path / "data/spoken/mtbench/clips.jsonl")
    assert held[-1]["heard"] == "Say hello."


def test_texts_that_are_missing_and_benchmarks_without_are_told(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"question.jsonl is missing; mt_bench comes from FastChat"):
        read_aloud.read_aloud(["mtbench_spoken"], tmp_path, Data(tmp_path))
    with pytest.raises(ValueError, match=r"mmau: .* use some of .*mmmlu_spoken"):
        read_aloud.read_aloud(["mmau"], tmp_path, Data(tmp_path))


def test_a_clip_is_the_same_whatever_was_said_before() -> None:
    first = spoken.synthesize("How many legs has a spider?")
    spoken.synthesize("おはよう", "ja", Voice(language="ja", variant="f2"))
    spoken.synthesize("Something else.")
    assert spoken.synthesize("How many legs has a spider?") == first
    assert spoken.synthesize("How many legs has a fly?") != first


def test_a_closed_pool_opens_again() -> None:
    tts_pool = TTSPool()
    first, _ = tts_pool.speak("hello", Voice())
    tts_pool.close()
    again, _ = tts_pool.speak("hello", Voice())
    tts_pool.close()
    assert (first == again).all()


def test_models_hear_and_judges_read() -> None:
    picture = Image(b"picture")
    talk = [
        Message.system("Be kind."),
        Message.user(picture, spoken.SpokenText(b"clip", "Hello"), Text("!")),
        Message.assistant("Hi."),
    ]
    assert spoken.audio_only(talk)[1] == Message.user(picture, Audio(b"clip"), Text("!"))
    assert type(spoken.audio_only(talk)[1].parts[1]) is Audio  # what a processor counts
    assert spoken.text_only(talk)[1] == Message.user(picture, Text("Hello"), Text("!"))
    assert spoken.audio_only(talk)[::2] == spoken.text_only(talk)[::2] == talk[::2]
