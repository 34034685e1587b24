"""`polyphi transcribe --live`: what is printed for the events of a live transcription."""

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyphi.cli.captions import transcribe_live
from polyphi.cli.printable import PrintableConsole
from polyphi.types.completion import Completion
from tests.core.transcription.test_longform import ToneEngine
from tests.fixtures.audio import say
from tests.fixtures.command_line import Refused

TALK = np.round(32767 * say(range(5), [0.8, 0.1, 0.1, 1.2, 0.1, 1.0], 16000)).astype("<i2")


def printed(
    monkeypatch: pytest.MonkeyPatch, engine: ToneEngine, terminal: bool = False
) -> tuple[bool, str]:
    stdin = io.TextIOWrapper(io.BytesIO(TALK.tobytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    console = PrintableConsole(file=io.StringIO(), force_terminal=terminal, width=40)
    done = transcribe_live(engine, "-", raw_rate=16000, to=None, adapter="auto", console=console)
    return done, console.file.getvalue()  # type: ignore[attr-defined]


def test_each_transcript_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, ToneEngine()) == (True, "w0 w1 w2\nw3 w4\n")


def test_a_terminal_has_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    done, text = printed(monkeypatch, ToneEngine(), terminal=True)
    assert done and "w0 w1 w2\n" in text and "w3 w4\n" in text


def test_a_part_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(ToneEngine):
        def generate_many(self, conversations: Any, **options: Any) -> list[Completion]:
            completions = super().generate_many(conversations, **options)
            if "w3" in completions[0].text:
                raise RuntimeError("broken")
            return completions

    assert printed(monkeypatch, Fails()) == (False, "w0 w1 w2\n")
    assert "broken" in capsys.readouterr().err


def test_captions_move_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    def erasing(answer: Completion, *_: Any) -> Completion:
        return replace(answer, text=answer.text.replace("w1", "\x1b[3J"))

    _, text = printed(monkeypatch, ToneEngine(answer=erasing), terminal=True)
    assert r"w0 \x1b[3J w2" in text and "\x1b[3J" not in text
    _, text = printed(monkeypatch, ToneEngine(answer=erasing))
    assert text == "w0 \x1b[3J w2\nw3 w4\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "y.wav", "--live"],
        ["x", "--live", "-", "--cot", "--to", "German"],
        ["x", "--live", "-", "--out", "folder"],
        ["x", "--live", "-", "--format", "srt"],
        ["x"],
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], refused: Refused) -> None:
    assert refused("transcribe", *arguments)
