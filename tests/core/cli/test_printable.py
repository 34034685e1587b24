"""Control characters of models, files and errors are shown on a terminal, and exact in a pipe."""

import io
import logging
from pathlib import Path

import pytest
from rich.table import Table

from polyphi.cli.load_progress import load_progress
from polyphi.cli.printable import PrintableConsole, printable, write_data
from tests.fixtures.command_line import Refused

TITLE = "\x1b]0;owned\x07"
SHOWN = r"\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        (TITLE, SHOWN),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("safe\rrm -rf", r"safe\rrm -rf"),
        ("photo\u202egpj.exe\u2066", r"photo\u202egpj.exe\u2066"),
        ("name\udcff.wav", r"name\udcff.wav"),
        ("tab\tand\nline, \u05e9\u05dc\u05d5\u05dd, \U0001f468\u200d\U0001f33e", None),
    ],
)
def test_control_characters_are_shown(text: str, visible: str | None) -> None:
    assert printable(text) == (text if visible is None else visible)


def test_an_error_moves_no_cursor(tmp_path: Path, refused: Refused) -> None:
    error = refused("chat", str(tmp_path / TITLE), "Hi")
    assert SHOWN in error and TITLE not in error


def test_a_table_moves_no_cursor() -> None:
    screen = PrintableConsole(file=io.StringIO(), force_terminal=True, width=100)
    table = Table("name")
    table.add_row(TITLE)
    screen.print(table)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert SHOWN in text and TITLE not in text


def test_a_log_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with load_progress():
        logging.getLogger("polyphi.hub.pull").warning("downloading %s", TITLE)
    assert capsys.readouterr().err == f"polyphi: downloading {SHOWN}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_text_of_a_model_is_exact_in_a_pipe(terminal: bool) -> None:
    console = PrintableConsole(file=io.StringIO(), force_terminal=terminal)
    write_data(console, f"{TITLE}\r:cat: [bold]\n")
    expected = f"{SHOWN}\\r:cat: [bold]\n" if terminal else f"{TITLE}\r:cat: [bold]\n"
    assert console.file.getvalue() == expected  # type: ignore[attr-defined]
