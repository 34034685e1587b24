"""The first guesses in examples/first_guesses_shell.py work, or are refused in one line."""

from pathlib import Path

import pytest

from tests.fixtures import published
from tests.fixtures.command_line import RunCommand, piped

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_first_guesses_work_or_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import first_guesses_shell
    import soundfile

    model = published.write(tmp_path / "model")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, [0.0] * 16000, 16000)
    guesses = first_guesses_shell.guesses(str(model), tmp_path)
    assert len(guesses) >= 15
    for guess in guesses:
        with piped(guess.stdin.encode()):
            code, out, error = run_command(*guess.words)
        lines = (error if code else out).strip().splitlines()
        assert first_guesses_shell.is_good(guess, code, lines), (guess, code, lines)
