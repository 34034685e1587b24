"""aider, by its command with the model and the address of its documentation for OpenAI-compatible servers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def aider(log: Any, model: str, tmp_path: Path) -> Callable[..., str]:
    """Run `aider` with arguments in an empty repository; returns its output."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    settings = {
        "HOME": str(tmp_path),
        "OPENAI_API_BASE": f"{log.url}/v1",
        "OPENAI_API_KEY": "none",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.com",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.com",
    }
    quiet = ["--no-check-update", "--analytics-disable", "--no-show-model-warnings", "--yes-always"]

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "aider", "--model", f"openai/{model}", *quiet, *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["streamed", "whole"])
@pytest.mark.parametrize("edit_format", ["ask", "whole", "diff"])
def test_message(
    aider: Any, log: Any, tmp_path: Path, edit_format: str, options: tuple[str, ...]
) -> None:
    """nano's answers hold no edits; aider reads them, shows them and ends."""
    (tmp_path / "sum.py").write_text("print(3 + 4)\n")
    arguments = ["--edit-format", edit_format, "--message", "What does this print?", "sum.py"]
    output = aider(*options, *arguments)
    assert bool(log.bodies[0].get("stream")) is (not options)
    assert "print(3 + 4)" in str(log.bodies[0]["messages"])
    assert "Tokens:" in output
