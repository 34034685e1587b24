"""Errors, interrupts and closed pipes on the command line."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import polyphi_command
from polyphi.cli.errors import interrupted, sentence
from tests.fixtures.command_line import RunCommand

LINES = """
import sys
from cyclopts import App
from polyphi.cli import main
app = App(name="lines", result_action="return_value")
@app.default
def lines():
    {body}
main([], app)
"""


def started(body: str) -> subprocess.Popen[str]:
    """A process that runs a command with this body."""
    return subprocess.Popen(
        [sys.executable, "-c", LINES.format(body=body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_redirected_lines_are_written_as_they_come() -> None:
    process = started("print('first'); sys.stdin.read(); print('last')")
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"  # while the command still runs
    assert process.communicate("")[0] == "last\n"


def test_a_closed_pipe_ends_quietly() -> None:
    process = started("print('first'); sys.stdin.read(); print('x' * 1_000_000)")
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == 141 and process.stderr.read() == ""
    process.stderr.close()


def test_an_interrupt_of_the_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "polyphi.cli", Interrupted("polyphi.cli"))
    with pytest.raises(SystemExit) as stop:
        polyphi_command.main()
    assert stop.value.code == 130 and capsys.readouterr() == ("", "polyphi: interrupted\n")


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        ("chat nano", False),
        ("inspect nano", False),
        ("export nano --out x", False),
        ("transcribe nano a.wav", False),
        ("transcribe nano a.wav --out x", True),
        ("train speech_2_post", True),
        ("reproduce nano --out x", True),
        ("curate tools", True),
        ("pull owner/name", True),
        ("eval nano --suite mini", True),
    ],
)
def test_only_what_resumes_says_so(words: str, resumes: bool) -> None:
    assert interrupted(words.split()).endswith("to resume") == resumes


def test_errors_of_the_system_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, says in (
        (tmp_path / "none" / "x", "check the path"),
        (tmp_path / "file" / "x", "a part of the path is a file"),
        (tmp_path, "expected a file, found a folder"),
        (tmp_path / ("x" * 300), "choose a shorter one"),
    ):
        with pytest.raises(OSError, match="Errno") as error:
            path.open("w")
        text = sentence(error.value, ["export"])
        assert text.startswith(f"{path}: ") and says in text
    partial = OSError(errno.EACCES, os.strerror(errno.EACCES), "/models/.phi.0123abcd.partial")
    assert sentence(partial, ["export"]).startswith("/models/phi: ")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "resume" in sentence(full, ["curate", "tools"]) and "resume" not in sentence(
        full, ["export"]
    )


def test_an_export_to_an_impossible_folder_is_a_sentence(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fixtures import published

    model = published.write(tmp_path / "model")
    (tmp_path / "file").touch()
    for out in ("file/exported", "x" * 250):
        code, _, error = run_command("export", str(model), "--out", str(tmp_path / out))
        assert code in (1, 2) and "Errno" not in error and len(error.splitlines()) == 1
        assert str(tmp_path / out.partition("/")[0]) in error and ".partial" not in error
