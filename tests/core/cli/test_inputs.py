"""Inputs and options are checked before a model is loaded."""

import threading
import wave
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pil

from polyphi.cli.inputs import check_first_word, with_repeated_options
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.fetch import read_url
from tests.fixtures import published
from tests.fixtures.command_line import RunCommand


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, the language model alone, an image, recordings, and damaged ones."""
    folder = tmp_path_factory.mktemp("inputs")
    published.write(folder / "model")
    published.write(folder / "mini", "mini")
    pil.new("RGB", (40, 50), "red").save(folder / "a.png")
    pil.new("RGB", (40, 50), "red").save(folder / "b.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    for name, count in (("talk.wav", 16000), ("empty.wav", 0)):
        with wave.open(str(folder / name), "wb") as clip:
            clip.setparams((1, 2, 16000, 0, "NONE", ""))
            clip.writeframes(bytes(2 * count))
    (folder / "cut.wav").write_bytes((folder / "talk.wav").read_bytes()[:30])
    (folder / "notes.txt").write_text("not a clip")
    return folder


def not_loaded(*_: Any, **__: Any) -> None:
    raise AssertionError("the weights were read")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("chat model hi --image none.png", "none.png: expected a file"),
        ("chat model hi --image a.png none.png", "none.png: expected a file"),
        ("chat model hi --image cut.png", "damaged"),
        ("chat model hi --image talk.wav", "expected a PNG"),
        ("chat model hi --audio cut.wav", "cut.wav"),
        ("chat model hi --audio empty.wav", "empty"),
        ("chat model hi --audio notes.txt", "expected a WAV"),
        ("chat model hi --video none.mp4", "none.mp4: expected a file"),
        ("chat model hi --video a.png", "expected an MP4"),
        ("chat model hi --part motion=none.csv", "none.csv"),
        ("chat model hi --modality none.py", "none.py"),
        ("chat model hi --max-tokens -5", "--max-tokens"),
        ("chat model hi --temperature -1", "--temperature"),
        ("chat model hi --top-p 2", "--top-p"),
        ("chat model hi --adapter medical", "unknown adapter 'medical'"),
        ("chat model hi --lora medical=none", "none"),
        ("chat model hi --lora medical=none --lora other=none", "--adapter"),
        ("chat mini hi --image a.png", "no encoder"),
        ("serve model --lora medical=none", "expected a folder"),
        ("serve model --lora medical=mini --port 0", "adapter_config.json"),
        ("serve none --port 0", "found no folder at none"),
        ("transcribe model talk.wav --to Klingon", "Klingon"),
        ("transcribe model --live --to Klingon", "Klingon"),
        ("transcribe model talk.wav --adapter medical", "unknown adapter 'medical'"),
        ("transcribe mini talk.wav", "no encoder"),
        ("transcribe model none.wav", "none.wav: expected a file"),
        ("transcribe model empty.wav", "empty"),
        ("transcribe model notes.txt", "expected a WAV"),
        ("inspect model --logits none.json --out x", "none.json"),
        ("export model --out x --merge medical", "no adapter 'medical'"),
        ("export model --out x --layout onnx", "found 'onnx'"),
        ("export model --out x --quant int4 --calibrate none", "none"),
        ("export model --out x.gguf --merge medical", "no adapter 'medical'"),
        ("eval model --suite table99 --mini", "table99"),
        ("eval model --suite mmlu --data .", "mmlu"),
        ("eval model --suite mini --judge nonsense", "nonsense"),
    ],
)
def test_an_invalid_input_is_refused_before_the_weights_are_read(
    words: str,
    says: str,
    files: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr("polyphi.api.load_checkpoint", not_loaded)
    monkeypatch.setattr("polyphi.checkpoints.read.load_checkpoint", not_loaded)
    code, _, error = run_command(*words.split())
    assert code in (1, 2) and says in error
    lines = [
        line for line in error.splitlines() if "; http" not in line
    ]  # a server loads meanwhile
    assert len(lines) == 1 or "data are missing" in error


def test_transcripts_that_are_done_need_no_model(
    files: Path, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("transcribe", str(files / "model"), str(files / "talk.wav"), "--out", str(tmp_path))
    assert run_command(*words)[0] == 0
    monkeypatch.setattr("polyphi.api.load_checkpoint", not_loaded)
    code, _, error = run_command(*words)
    assert code == 0 and "kept 1 transcript of" in error


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ("chat m --image a.png b.png What?", "chat m --image a.png --image b.png What?"),
        (
            "chat m --image=a.png b.png --audio c.wav",
            "chat m --image=a.png --image b.png --audio c.wav",
        ),
        ("chat --image a.png m What?", "chat --image a.png m What?"),
        ("chat m --audio http://h/a http://h/b", "chat m --audio http://h/a --audio http://h/b"),
        ("transcribe m a.wav b.wav", "transcribe m a.wav b.wav"),
        ("chat m --image a.png -- b.png", "chat m --image a.png -- b.png"),
        ("chat m --image a.png --detail low b.png", "chat m --image a.png --detail low b.png"),
    ],
)
def test_an_option_of_media_takes_several_files(words: str, result: str) -> None:
    assert with_repeated_options(words.split()) == result.split()


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("transcribe", ["speech.wav"], "polyphi transcribe MODEL speech.wav;"),
        ("transcribe", ["a.wav", "b.wav"], "polyphi transcribe MODEL a.wav b.wav;"),
        ("transcribe", ["a.wav", "nano", "b.wav"], "polyphi transcribe nano a.wav b.wav"),
        ("transcribe", ["a.wav", "owner/name"], "polyphi transcribe owner/name a.wav"),
        ("chat", ["What is this?"], 'polyphi chat MODEL "What is this?";'),
        ("chat", ["hi", "nano"], "polyphi chat nano hi"),
        ("chat", ["cat.png", "What is this?"], 'polyphi chat MODEL cat.png "What is this?";'),
    ],
)
def test_a_missing_model_is_named_with_the_corrected_command(
    command: str, words: list[str], line: str
) -> None:
    with pytest.raises(ValueError, match="expected the model") as error:
        check_first_word(command, words[0], words[1:])
    assert f"write: {line}" in f"{error.value};"


@pytest.mark.parametrize("words", [["nano", "hi"], ["owner/name", "nano"], ["misspelled", "hi"]])
def test_another_first_word_is_left_to_the_loader(words: list[str]) -> None:
    check_first_word("chat", words[0], words[1:])


@pytest.fixture
def host(files: Path) -> Iterator[str]:
    """The address of a server on this machine that has the files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_of_the_user_is_fetched_within_limits(host: str, files: Path) -> None:
    assert read_url(f"{host}/a.png", "image") == (files / "a.png").read_bytes()
    for name, settings, says in (
        ("none.png", None, "HTTP 404"),
        ("talk.wav", None, "expected a PNG"),
        ("a.png", Settings(max_image_bytes=20), "at most 20 bytes"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            read_url(f"{host}/{name}", "image", settings)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="doesn't answer"):
        read_url("http://127.0.0.1:1/a.png", "image")


def test_addresses_are_answered_and_transcribed(
    host: str, files: Path, run_command: RunCommand
) -> None:
    words = ("chat", str(files / "model"), "--image", f"{host}/a.png", f"{host}/b.png", "what ?")
    code, out, error = run_command(*words, "--max-tokens", "2", "--device", "cpu")
    assert (code, error) == (0, "") and out
    code, out, _ = run_command("transcribe", str(files / "model"), f"{host}/talk.wav")
    assert code == 0 and out


def test_chat_has_a_system_message_seeds_and_adapters(
    files: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polyphi
    from polyphi.engine.engine import Engine

    calls: list[tuple[list[polyphi.Message], dict[str, Any]]] = []

    def stream(self: Engine, messages: list[polyphi.Message], **options: Any) -> Iterator[Any]:
        calls.append((list(messages), options))
        yield from ()

    monkeypatch.setattr(Engine, "stream", stream)
    words = ["chat", str(files / "model"), "hi", "--system", "be brief", "--temperature", "0.7"]
    code, _, error = run_command(*words, "--seed", "3", "--top-p", "0.9")
    assert (code, error) == (0, "")
    messages, options = calls[0]
    assert [(m.role, m.text) for m in messages] == [("system", "be brief"), ("user", "hi")]
    sampling = options["sampling"]
    assert (sampling.seed, sampling.top_p, options["adapter"]) == (3, 0.9, "auto")
