"""docs/server.md, docs/server_api.md and docs/live.md: their Python runs against a real server."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.audio import say
from tests.fixtures.engines import picture
from tests.fixtures.servers import Running

DOCS = Path(__file__).parents[3] / "docs"


def run(page: str, running: Running) -> None:
    """Runs the Python of a page, with short answers of the tests' model."""
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", (DOCS / page).read_text()))
    changed = code.replace("http://127.0.0.1:8000", running.url).replace('"nano"', '"tiny"')
    changed = changed.replace("    messages=", "    max_tokens=8, messages=")
    changed = changed.replace("responses.create(", "responses.create(max_output_tokens=8, ")
    exec(compile(changed, f"docs/{page}", "exec"), {})


def test_the_quickstart_runs(
    running: Running,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit.png").write_bytes(picture().source)
    run("server.md", running)
    assert capsys.readouterr().out.strip().endswith("vision")


def test_the_page_of_the_api_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    run("server_api.md", running)
    assert int(capsys.readouterr().out.split()[-1]) > 0  # input tokens


def test_the_page_of_live_transcription_runs(
    running: Running,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    talk = say(range(3), [0.8, 0.1, 0.1, 1.0], 24000)
    (tmp_path / "speech.pcm").write_bytes(np.round(32767 * talk).astype("<i2").tobytes())
    run("live.md", running)
    assert capsys.readouterr().out.strip()
