"""Invalid input gives one clear line and an exit code, never a traceback."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from polyphi import cli
from polyphi.cli import bench
from tests.fixtures.command_line import Refused, RunCommand, piped
from tests.fixtures.processes import completed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "speech_9"], "unknown stage"),
        (["reproduce", "huge", "--out", "x"], "unknown size"),
        (["curate", "nothing"], "unknown corpus"),
        (["bench", "nothing"], "the benchmarks are"),
        (["inspect", "nowhere/at/all/x"], ""),
        (["transcribe", "x", "y.wav", "--cot"], "--to"),
        (["inspect", "x", "--logits", "request.json"], "--out"),
        (["reproduce", "micro", "--out", "x", "--precision", "fp8"], "fp8"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: RunCommand,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, error = run_command(*arguments)
    assert code in (1, 2)
    assert says in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random micro model with its own tokenizer."""
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.model.multimodal import PhiModel
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi_recipe.stages import sizes
    from polyphi_recipe.stages.lineage import BUILT_IN

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.train(["one two three"] * 4, 512)
    tokenizer.save(folder / "tokenizer")
    config = BUILT_IN.configuration(
        BUILT_IN.after("joint_1_vision_speech"), sizes.MICRO.model, tokenizer
    )
    model = PhiModel(config)
    model.initialise(0)
    save_checkpoint(model, folder / "model", files=sorted((folder / "tokenizer").iterdir()))
    return folder / "model"


def test_a_tiny_picture_is_answered_and_a_long_one_refused(
    checkpoint: Path, tmp_path: Path, run_command: RunCommand, refused: Refused
) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (20000, 10)).save(tmp_path / "long.png")
    command = "chat", str(checkpoint), "What?", "--max-tokens", "2", "--image"
    code, _, error = run_command(*command, str(tmp_path / "dot.png"))
    assert (code, error) == (0, "")
    assert "20000" in refused(*command, str(tmp_path / "long.png"))


def test_a_full_disk_is_one_line_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("polyphi.data.shards.pq.ParquetWriter", full)
    code, _, error = run_command(
        "curate", "tools", "--size", "micro", "--out", str(tmp_path / "run")
    )
    assert code == 1
    assert "free some space" in error
    assert len(error.strip().splitlines()) == 1


def test_an_interrupted_command_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polyphi.hub.location.locate", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", "model"])
    assert stop.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("polyphi: interrupted")


def test_bench_needs_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "polyphi" / "cli" / "bench.py"))
    assert "clone the repository" in refused("bench", "train")


def test_a_benchmark_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", note)
    cli.main(["bench", "inference", "--layers", "8", "--json", "--only", "decode"])
    assert started[0][2:] == ["--repeats", "3", "--json", "--layers", "8", "--only", "decode"]


def test_the_package_runs_as_a_module() -> None:
    """As under torchrun (docs/own_data.md)."""
    run = completed(sys.executable, "-m", "polyphi", "--version")
    assert run.returncode == 0 and run.stdout.startswith("polyphi "), run.stdout


def test_a_missing_extra_is_one_line_that_names_it() -> None:
    script = (
        "import sys; sys.modules['datatrove'] = None; "
        "from polyphi.cli import main; main(['curate', 'show'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "datatrove" in line and '[curate]"' in line


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the prompts that the engine receives."""
    from polyphi.engine.engine import Engine

    texts: list[str] = []
    stream = Engine.stream

    def listening(self: Engine, messages: list, **options: object) -> object:
        texts.append(messages[0].text)
        return stream(self, messages, **options)

    monkeypatch.setattr(Engine, "stream", listening)
    return texts


def test_a_question_may_be_piped_in(
    checkpoint: Path,
    run_command: RunCommand,
    refused: Refused,
    prompts: list[str],
    tmp_path: Path,
) -> None:
    command = "chat", str(checkpoint), "--max-tokens", "2"
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    image = "--image", str(tmp_path / "dot.png")
    with piped(b"How much is 3 plus 4?\n"):
        assert run_command(*command)[::2] == (0, "")
    with piped("Zürich\n".encode()):
        assert run_command(*command, "Summarize.")[::2] == (0, "")
    with piped(b"notes"):
        assert run_command(*command, *image)[::2] == (0, "")
    with piped(b""):
        assert run_command(*command, "What?")[::2] == (0, "")
    assert prompts == ["How much is 3 plus 4?", "Zürich\n\nSummarize.", "notes", "What?"]
    with piped(b" \n"):
        assert "nothing was piped in" in refused(*command)
    with piped(b"\x89PNG\r\n\x1a\n\0"):
        assert "PNG" in refused(*command, "What?")


def test_a_pipe_that_nobody_writes_to_does_not_stop_a_prompt(
    checkpoint: Path,
    run_command: RunCommand,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polyphi.cli.chat.PIPE_SECONDS", 0.0)
    with piped(b"", ended=False):
        code, _, error = run_command("chat", str(checkpoint), "What?", "--max-tokens", "2")
    assert code == 0 and prompts == ["What?"]
    assert "standard input" in error and len(error.splitlines()) == 1


def test_ctrl_c_ends_one_answer_quietly(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyphi.engine.engine import Engine
    from polyphi.types.completion import Delta

    def stream(self: Engine, messages: list, **options: object) -> Iterator[Delta]:
        yield Delta("Once upon")
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", stream)
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", str(checkpoint), "Tell me"])
    captured = capsys.readouterr()
    assert stop.value.code == 130 and captured.out == "Once upon\n" and captured.err == ""


def test_a_quantized_export_is_loaded_without_being_asked_for(
    checkpoint: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    import polyphi
    from polyphi.data import shards
    from polyphi.types.messages import Message
    from polyphi.types.sampling import SamplingParams

    out = tmp_path / "int4"
    cli.main(["export", str(checkpoint), "--out", str(out), "--quant", "int4-all"])
    assert "4 bits (adapters and encoders in 8)" in (out / "README.md").read_text()
    phi = polyphi.load(out)
    assert phi.model.quant == "int4-all" and "and int4-all" in str(phi.memory)
    messages = [Message.user("what is this ?")]
    assert phi.generate(messages, sampling=SamplingParams(max_tokens=3)).tokens
    rows = tmp_path / "rows"
    shards.write(rows, [shards.document("1", "what is this ?", "us", "MIT")], pipeline="test")
    command = ["export", str(checkpoint), "--calibrate", str(rows)]
    command += ["--out", str(tmp_path / "better")]
    cli.main([*command, "--quant", "int4"])
    assert polyphi.load(tmp_path / "better").model.quant == "int4"
    for arguments, says in (
        (command, "are for a quantized checkpoint"),
        ([*command, "--quant", "int8"], "calibration is for int4; int8 does without it"),
        (["chat", str(out), "hello", "--quant", "int8"], "can't become int8: load it without"),
        (["export", str(out), "--out", str(tmp_path / "again")], "can't be saved"),
        (
            ["export", str(out), "--out", str(tmp_path / "x"), "--merge", "speech"],
            "quantize the saved",
        ),
    ):
        code, _, error = run_command(*arguments)
        assert code in (1, 2) and says in error and len(error.strip().splitlines()) == 1
