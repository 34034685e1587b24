"""Questions read aloud: clips cached by text and voice, interrupted runs resumed, clips checked by a transcriber."""

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
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi_eval import read_aloud, spoken
from polyphi_eval.read_aloud import SpeechCache, synthesize_rows, voice_of
from polyphi_eval.services.speech_synthesis import TTSPool, Voice
from polyphi_eval.sources import Data, Missing
from polyphi_eval.spoken import with_options

ROWS: list[Mapping[str, Any]] = [
    {"id": "a", "text": "One.", "answer": "1"},
    {"id": "b", "text": ["Two.", "And three?"], "language": "en"},
    {"id": "c", "text": "Vier.", "language": "de", "file": "de.jsonl"},
]


@pytest.fixture
def speech_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The (text, voice) pairs that engines receive; they answer with a short tone."""
    requests: list[tuple[str, str]] = []

    class TTSPool:
        def close(self) -> None:
            pass

        def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
            requests.append((text, f"{voice.language} {voice.variant}"))
            if text == "stop":
                raise KeyboardInterrupt
            return np.full(4000, 0.1, np.float32), 16_000

    monkeypatch.setattr(spoken, "TTSPool", TTSPool)
    spoken.synthesize.cache_clear()
    yield requests
    spoken.synthesize.cache_clear()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_their_fields_and_get_clips(tmp_path: Path, speech_requests: list[Any]) -> None:
    paths = synthesize_rows(ROWS, SpeechCache(tmp_path))
    assert [p.name for p in paths] == ["questions.jsonl", "de.jsonl"]
    first, second = lines(tmp_path / "questions.jsonl")
    assert (first["answer"], first["voice"], len(second["audio"])) == ("1", "espeak-ng", 2)
    for file in (first["audio"], *second["audio"], lines(tmp_path / "de.jsonl")[0]["audio"]):
        assert soundfile.info(tmp_path / file).samplerate == 16_000
    assert speech_requests[-1] == ("Vier.", "de ")


def test_a_text_is_not_synthesized_twice(tmp_path: Path, speech_requests: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        synthesize_rows([*ROWS[:2], {"text": "stop"}], SpeechCache(tmp_path))
    assert not (tmp_path / "questions.jsonl").exists()
    with (tmp_path / "clips.jsonl").open("a") as file:
        file.write('{"file": "clips/cut')
    synthesize_rows(ROWS, cache := SpeechCache(tmp_path))
    assert [text for text, _ in speech_requests] == ["One.", "Two.", "And three?", "stop", "Vier."]
    assert cache.new == 1 and len(cache.used) == 4
    synthesize_rows(ROWS, cache := SpeechCache(tmp_path))
    assert cache.new == 0 and len(speech_requests) == 5
    next((tmp_path / "clips").glob("*.flac")).unlink()
    synthesize_rows(ROWS, cache := SpeechCache(tmp_path))
    assert cache.new == 1


def test_voices_take_turns_and_flite_speaks_english_only(
    tmp_path: Path, speech_requests: list[Any]
) -> None:
    voices = [voice_of("espeak-ng:f2"), voice_of("flite:slt")]
    rows = [{"text": f"Text {n}."} for n in range(4)] + [{"text": "Fünf.", "language": "de"}]
    synthesize_rows(rows, SpeechCache(tmp_path, voices))
    assert [voice for _, voice in speech_requests] == [
        "en f2",
        "en slt",
        "en f2",
        "en slt",
        "de f2",
    ]
    with pytest.raises(ValueError, match=r"question 0: flite speaks only English.*German"):
        synthesize_rows(rows[-1:], SpeechCache(tmp_path, voices[1:]))


def test_a_clip_with_a_high_word_error_rate_is_tried_in_the_other_voices(
    tmp_path: Path, speech_requests: list[Any]
) -> None:
    languages: list[str] = []
    answers = {"f1": "something else entirely", "f2": "One two tree", "f3": "nothing at all here"}

    def transcribe(clip: bytes, language: str) -> str:
        assert soundfile.read(io.BytesIO(clip))[1] == 16_000
        languages.append(language)
        return answers[speech_requests[-1][1].split()[1]]

    voices = [replace(Voice(), variant=variant) for variant in answers]
    rows = [{"text": "One two three."}]
    cache = SpeechCache(tmp_path, voices, transcribe=transcribe, worst=0.35)
    synthesize_rows(rows, cache)
    assert [voice for _, voice in speech_requests] == ["en f1", "en f2"]
    assert languages == ["en", "en"]
    assert cache.error_rate == pytest.approx(1 / 3)
    assert lines(tmp_path / "questions.jsonl")[0]["voice"] == "espeak-ng f2"
    # With a stricter bound the third voice is tried too, and the second one is still the best.
    cache = SpeechCache(tmp_path, voices, transcribe=transcribe, worst=0.1)
    synthesize_rows(rows, cache)
    assert [voice for _, voice in speech_requests][2:] == ["en f3"] and len(languages) == 3
    assert lines(tmp_path / "questions.jsonl")[0]["voice"] == "espeak-ng f2"
    assert "WER 33.3 % (1 clip above 10 %)" in cache.summary()


def test_pictures_become_files(tmp_path: Path, speech_requests: list[Any]) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff1")
    images = [Image(b"\x89PNG1"), b"\x89PNG1", tmp_path / "picture"]
    synthesize_rows(
        [{"text": "What?", "image": image} for image in images], SpeechCache(tmp_path / "set")
    )
    paths = [row["image"] for row in lines(tmp_path / "set/questions.jsonl")]
    assert paths[0] == paths[1] != paths[2] and paths[2].endswith(".jpg")
    assert (tmp_path / "set" / paths[0]).read_bytes() == b"\x89PNG1"


def test_options_are_read_with_their_letters() -> None:
    assert with_options("Which?", ["red", "It is blue."]) == "Which?\nA. red.\nB. It is blue."
    assert with_options("どれ", ["赤"]) == "どれ.\nA. 赤."


def test_voices_are_parsed_from_one_argument() -> None:
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
    from polyphi_eval.benchmarks.speech import mtbench_spoken

    mtbench_spoken.benchmark.write_fixtures(tmp_path / "texts")
    command = ["eval", "synthesise", "mtbench_spoken", "--data", str(tmp_path / "data")]
    command += ["--texts", str(tmp_path / "texts"), "--listener", f"{transcriber}#ears"]
    cli.main(command)
    output = " ".join(capsys.readouterr().out.split())
    assert "mtbench_spoken: 4 clips (4 new)" in output and "WER" in output
    assert len(list(mtbench_spoken.load(Data(tmp_path / "data")))) == 2
    clips = lines(tmp_path / "data/spoken/mtbench/clips.jsonl")
    assert clips[-1]["hypothesis"] == "Say hello."


def test_missing_texts_and_benchmarks_without_texts_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"question.jsonl is missing; mt_bench comes from FastChat"):
        read_aloud.read_aloud(["mtbench_spoken"], tmp_path, Data(tmp_path))
    with pytest.raises(ValueError, match=r"mmau: .* use some of .*mmmlu_spoken"):
        read_aloud.read_aloud(["mmau"], tmp_path, Data(tmp_path))


def test_a_clip_does_not_depend_on_earlier_clips() -> None:
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


def test_models_receive_audio_and_judges_text() -> None:
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
