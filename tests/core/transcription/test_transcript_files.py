"""Many files to transcripts: complete, once each, and independent of failures of others."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile
from rich.console import Console

from polyphi import cli
from polyphi.api import Phi, load
from polyphi.checkpoints.write import save_checkpoint
from polyphi.cli.printable import PrintableConsole
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import sha256
from polyphi.transcription import record, transcript_files
from polyphi.transcription.recordings import SUFFIXES, find, select, targets
from polyphi.types.completion import Completion
from tests.fixtures import forked
from tests.fixtures.audio import decode_words, say
from tests.fixtures.engines import fitted
from tests.fixtures.variants import few


@pytest.fixture(scope="module")
def checkpoint(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random micro model with its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.train(["one two three <sep>"] * 4, 512)
    tokenizer.save(folder / "tokenizer")
    model = PhiModel(fitted(tiny_config, tokenizer))
    model.initialise(0)
    save_checkpoint(model, folder / "model", files=sorted((folder / "tokenizer").iterdir()))
    return folder / "model"


@pytest.fixture
def phi(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Phi:
    """The model, with `generate_many` replaced by a decoder of tones."""
    phi = load(checkpoint)

    def generate_many(conversations: Any, **_: object) -> list[Completion]:
        clips = [messages[0].parts[0].source for messages in conversations]
        return [Completion(" ".join(decode_words(*clip))) for clip in clips]

    monkeypatch.setattr(phi.engine, "generate_many", generate_many)
    return phi


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Five clips at two depths, a text, and a file that is damaged."""
    folder = tmp_path / "talks"
    (folder / "old").mkdir(parents=True)
    for n, name in enumerate(("a.wav", "b.flac", "old/c.wav", "old/c.flac", "d.wav")):
        soundfile.write(folder / name, say([n, n + 1], [0.1] * 3), 16000)
    (folder / "notes.txt").write_text("not a clip")
    whole = (folder / "d.wav").read_bytes()
    (folder / "d.wav").write_bytes(whole[: len(whole) // 2])
    return folder


def run(phi: Phi, names: list[str], out: Path | None, **options: Any) -> tuple[int, str, list[str]]:
    log, written = Console(file=io.StringIO(), width=200), list[str]()
    recordings = targets(find(names, log), out, options.get("form", "text"))
    force = options.pop("force", False)
    chosen = transcript_files.TranscriptOptions(**options)
    todo, failed = select(recordings, chosen, force=force, console=log)
    if todo:
        failed += transcript_files.transcribe_files(
            phi.engine, todo, chosen, write=written.append, console=log
        )
    return failed, log.file.getvalue(), written  # type: ignore[attr-defined]


def test_a_folder_becomes_a_folder(phi: Phi, talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed, log, written = run(phi, [str(talks)], out)
    assert failed == 1 and not written
    assert "d.wav: the WAV clip is truncated" in log and "4 files, 3.6 seconds" in log
    assert "talks: skipped 1 file " in log and "notes.txt (text)" in log
    assert transcripts(out) == {
        "a.txt": "w0 w1\n",
        "b.txt": "w1 w2\n",
        "old/c.wav.txt": "w2 w3\n",
        "old/c.flac.txt": "w3 w4\n",
    }


def test_skipped_files_of_a_folder_are_named_up_to_a_number(talks: Path) -> None:
    for number in range(12):
        (talks / f"m{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (talks / ".hidden").write_text("x")
    (talks / "broken.wav").symlink_to(talks / "none")
    log = Console(file=io.StringIO(), width=1000)
    assert len(find([str(talks)], log)) == 6, "a broken link fails later, with its name"
    (line,) = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "13 files" in line and "m09.png (PNG) and 3 more" in line and "hidden" not in line


def test_a_transcript_on_a_terminal_is_not_behind_the_progress_bar(phi: Phi, talks: Path) -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    names = [str(talks / "a.wav"), str(talks / "b.flac")]
    recordings = targets(find(names), None, "text")
    todo, _ = select(recordings, transcript_files.TranscriptOptions(), console=screen)
    transcript_files.transcribe_files(
        phi.engine,
        todo,
        transcript_files.TranscriptOptions(),
        write=lambda text: print(text, file=screen.file),
        console=screen,
    )
    erase = "\x1b[2K"
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (line,) = [line for line in lines if "w0 w1" in line]
    assert "2 files, 1.8 seconds" in lines[0] and "0.0 of 1.8 seconds" in "".join(lines)
    assert line.split(erase)[-1].endswith("a.wav: w0 w1") and "seconds" not in line.split(erase)[-1]


def transcripts(out: Path) -> dict[str, str]:
    paths = (p for p in out.rglob("*") if p.is_file() and p.name != record.RECORD)
    return {str(p.relative_to(out)): p.read_text() for p in paths}


def test_the_name_of_a_file_moves_no_cursor(tmp_path: Path) -> None:
    name = tmp_path / "\x1b]0;owned\x07.wav"
    name.write_bytes(b"no audio")
    screen = PrintableConsole(file=io.StringIO(), width=400, force_terminal=True)
    recordings = targets(find([str(name)]), None, "text")
    options = transcript_files.TranscriptOptions()
    assert select(recordings, options, console=screen) == ([], 1)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert r"\x1b]0;owned\x07.wav" in text and "\x1b]" not in text


def test_the_same_command_resumes(phi: Phi, talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(phi, [str(talks)], out)
    (out / "b.txt").unlink()
    (out / "a.txt").write_text("mine")
    failed, log, _ = run(phi, [str(talks)], out)
    assert failed == 1 and "kept 3 transcripts" in log and "1 of them" in log
    assert (out / "a.txt").read_text() == "mine" and (out / "b.txt").read_text() == "w1 w2\n"
    run(phi, [str(talks / "*.wav")], out, force=True)
    assert (out / "a.txt").read_text() == "w0 w1\n"


@pytest.mark.parametrize("change", ["to", "model", "cot", "window", "recording"])
def test_a_stale_transcript_is_written_again_unless_it_was_edited(
    phi: Phi, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out, names = tmp_path / "out", [str(talks / "a.wav"), str(talks / "b.flac")]
    run(phi, names, out)
    options: dict[str, Any] = {}
    if change == "recording":
        for name in names:
            before = Path(name).stat()
            soundfile.write(name, say([7, 8], [0.1] * 3), 16000)
            os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        values = {"to": "German", "model": "other", "cot": True, "window": 30.0}
        options = {change: values[change]} | ({"to": "German"} if change == "cot" else {})
        monkeypatch.setattr(
            phi.engine,
            "generate_many",
            lambda conversations, **_: [Completion("w7 w8") for _ in conversations],
        )
    (out / "b.txt").write_text("w1 w2, corrected by hand")
    failed, log, _ = run(phi, names, out, **options)
    assert transcripts(out) == {"a.txt": "w7 w8\n", "b.txt": "w1 w2, corrected by hand"}
    assert (
        failed == 1
        and "b.txt is kept: it was edited" in log
        and "writing 1 transcript again" in log
    )
    failed, log, _ = run(phi, names, out, **options)
    assert failed == 1 and "kept 1 transcript of" in log
    run(phi, names, out, force=True, **options)
    assert transcripts(out) == {"a.txt": "w7 w8\n", "b.txt": "w7 w8\n"}


def test_a_text_of_another_program_is_kept(phi: Phi, talks: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("1,000 lines")
    failed, log, _ = run(phi, [str(talks / "a.wav")], tmp_path / "out")
    assert failed == 1 and "a.txt is kept" in log and "--force" in log
    assert transcripts(tmp_path / "out") == {"a.txt": "1,000 lines"}


WRITE = """
import sys
from pathlib import Path
from polyphi.transcription import record
target = Path(sys.argv[1])
while True:
    for settings in "ab":
        record.write(target, settings * 100_000, sys.argv[2], settings)
"""


@pytest.mark.parametrize("kills", few([5, 50], 1))
def test_a_kill_between_record_and_transcript_loses_nothing(tmp_path: Path, kills: int) -> None:
    """The transcript is whole, and is never taken for that of other settings, or for one that was edited."""
    target, recording = tmp_path / "out" / "a.txt", tmp_path / "a.wav"
    recording.write_bytes(b"")
    content = sha256(recording)

    def state_of(settings: str) -> str:
        lines = record.read(target.parent)["a.txt"]
        return record.state(target, lines, recording, settings)

    record.write(target, "a" * 100_000, content, "a")
    for _ in forked.killed(WRITE, str(target), content, times=kills, within=0.1):
        text = target.read_text()
        assert text in ("a" * 100_000, "b" * 100_000)
        assert state_of(text[0]) == "current"
        assert state_of("b" if text[0] == "a" else "a") == "outdated"
    record.write(target, "c", sha256(recording), "c")
    assert state_of("c") == "current"
    assert sorted(p.name for p in target.parent.iterdir()) == [record.RECORD, "a.txt"]


def test_a_file_that_fails_while_reading_does_not_affect_others(
    phi: Phi, talks: Path, tmp_path: Path
) -> None:
    """A FLAC file whose header is right and whose samples end early."""
    whole = (talks / "b.flac").read_bytes()
    (talks / "b.flac").write_bytes(whole[: len(whole) // 2])
    failed, log, written = run(phi, [str(talks / "a.wav"), str(talks / "b.flac")], None)
    assert failed == 1 and "b.flac: the FLAC clip is" in log
    assert written == [f"{talks / 'a.wav'}: w0 w1"]


def test_an_interrupt_leaves_what_is_finished(
    phi: Phi, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_files, "MAX_GROUP_FILES", 1)
    answer, calls = phi.engine.generate_many, list[int]()

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    monkeypatch.setattr(phi.engine, "generate_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(phi, [str(talks)], tmp_path / "out")
    written = transcripts(tmp_path / "out").values()
    assert len(written) == 2 and all(text.startswith("w") for text in written)


@pytest.mark.parametrize("form", sorted(SUFFIXES))
def test_every_format_is_written(form: str, phi: Phi, talks: Path, tmp_path: Path) -> None:
    run(phi, [str(talks / "a.wav")], tmp_path, form=form, words="estimated")
    text = (tmp_path / f"a{SUFFIXES[form]}").read_text()
    assert "w0 w1" in text
    if "json" in form:
        assert [w.get("word", w.get("text")) for w in json.loads(text)["words"]] == ["w0", "w1"]


def test_invalid_arguments_raise_before_anything_runs(
    phi: Phi, talks: Path, tmp_path: Path
) -> None:
    for names, message in (
        ([str(tmp_path / "none*.wav")], "expected recordings, found none"),
        ([str(talks / "old"), str(talks / "empty?")], "found none"),
    ):
        with pytest.raises(ValueError, match=message):
            find(names)
    soundfile.write(tmp_path / "a.wav", say([1], [0.1] * 2), 16000)
    recordings = find([str(talks / "a.wav"), str(tmp_path / "a.wav")])
    with pytest.raises(ValueError, match=r"a\.wav\.txt"):
        targets(recordings, tmp_path, "text")
    with pytest.raises(ValueError, match="'x'"):
        run(phi, [str(talks / "a.wav")], None, adapter="x")
    failed, log, _ = run(phi, [str(talks / "gone.wav")], None)
    assert failed == 1 and "found nothing there" in log


COMMAND = """
import sys
from polyphi import cli
from polyphi.transcription import transcript_files
transcript_files.MAX_GROUP_FILES = 1
cli.main(sys.argv[1:])
"""


@pytest.mark.long
def test_a_killed_command_leaves_whole_transcripts(
    checkpoint: Path, talks: Path, tmp_path: Path
) -> None:
    (talks / "d.wav").unlink()
    expected, out = tmp_path / "expected", tmp_path / "out"
    command = ["transcribe", str(checkpoint), str(talks), "--format", "srt", "--out"]
    began = time.monotonic()
    whole = forked.start(COMMAND, *command, str(expected))
    whole.join()
    seconds = time.monotonic() - began
    assert len(transcripts(expected)) == 4
    (out / "old").mkdir(parents=True)
    (out / "thesis.tex").write_text("1,000 lines")
    counts = set()
    for _ in forked.killed(COMMAND, *command, str(out), times=50, within=seconds):
        written = transcripts(out)
        assert written.pop("thesis.tex") == "1,000 lines"
        assert written.items() <= transcripts(expected).items()
        counts.add(len(written))
        if len(written) == 4:
            for name in written:
                (out / name).unlink()
    assert len(counts) > 1
    cli.main([*command, str(out)])
    assert transcripts(out) == {**transcripts(expected), "thesis.tex": "1,000 lines"}


def test_the_command_line(
    checkpoint: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights: files are written, a damaged one makes the exit code 1."""
    model, out = str(checkpoint), tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["transcribe", model, str(talks), "--out", str(out), "--format", "srt"])
    assert stop.value.code == 1
    assert "Traceback" not in capsys.readouterr().err
    assert len(list(out.rglob("*.srt"))) == 4
    with pytest.raises(SystemExit) as stop:
        cli.main(["transcribe", model, str(talks), "--format", "vtt"])
    assert stop.value.code == 2 and "--out DIR" in capsys.readouterr().err
    cli.main(["transcribe", model, str(talks / "a.wav"), "--to", "German", "--cot"])
