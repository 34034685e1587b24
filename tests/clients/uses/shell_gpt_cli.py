"""shell-gpt, by its command `sgpt` with API_BASE_URL and DEFAULT_MODEL."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUM = "What is 3 + 4?"
FUNCTION = """
from pydantic import BaseModel


class Function(BaseModel):
    city: str

    @classmethod
    def execute(cls, city):
        return f"20 C in {city}"

    @classmethod
    def openai_schema(cls):
        function = {"name": "get_weather", "parameters": cls.model_json_schema()}
        return {"type": "function", "function": function}
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    """The folder of functions that the model may call; empty."""
    (tmp_path / "functions").mkdir()
    return tmp_path / "functions"


@pytest.fixture
def sgpt(log: Any, model: str, tmp_path: Path, functions: Path) -> Callable[..., str]:
    """Run `sgpt` with arguments and standard input; returns its output."""
    settings = {
        "HOME": str(tmp_path),
        "API_BASE_URL": f"{log.url}/v1",
        "DEFAULT_MODEL": model,
        "CACHE_PATH": str(tmp_path / "cache"),
        "CHAT_CACHE_PATH": str(tmp_path / "chats"),
        "OPENAI_FUNCTIONS_PATH": str(functions),
        "PRETTIFY_MARKDOWN": "false",
    }

    def run(*arguments: str, input: str | None = None) -> str:
        command = [sys.executable, "-m", "sgpt", *arguments]
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        environment = {**os.environ, **settings}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, **stdin
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_answer(sgpt: Any, log: Any) -> None:
    assert sgpt(SUM) == log.text().strip()
    assert log.bodies[-1]["stream"] is True
    sgpt(SUM)
    assert len(log.bodies) == 1, "the second answer is of shell-gpt's cache"


def test_standard_input(sgpt: Any, log: Any) -> None:
    assert sgpt("What is the sum?", input="3 and 4") == log.text().strip()
    assert "3 and 4" in log.bodies[0]["messages"][-1]["content"]


def test_code(sgpt: Any, log: Any) -> None:
    assert sgpt("--code", "1") == log.text().strip()


def test_shell_command(sgpt: Any, log: Any) -> None:
    assert sgpt("--shell", "--no-interaction", "list files") == log.text().strip()


def test_chat(sgpt: Any, log: Any) -> None:
    first = sgpt("--chat", "sums", SUM)
    second = sgpt("--chat", "sums", "What is 5 + 2?")
    contents = [m["content"] for m in log.bodies[1]["messages"]]
    assert contents[-2].strip() == first and second == log.text().strip()


def test_functions(sgpt: Any, log: Any, functions: Path) -> None:
    """shell-gpt leaves the choice of a function to the model."""
    (functions / "get_weather.py").write_text(FUNCTION)
    text = sgpt("What is the weather in Seville on Tuesday?")
    (tool,) = log.bodies[0]["tools"]
    assert tool["function"]["name"] == "get_weather" and log.bodies[0]["tool_choice"] == "auto"
    if log.message(0).get("tool_calls"):
        assert "@FunctionCall `get_weather(" in text
        result = log.bodies[1]["messages"][-1]
        assert result["content"].startswith("20 C in ")
    else:
        assert text == log.text().strip()
