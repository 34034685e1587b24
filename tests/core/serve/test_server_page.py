"""docs/server.md and docs/live.md: their Python runs against a real server."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from engine.conftest import picture
from serve.conftest import Running
from tones import say

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "server.md").read_text()


def test_the_page_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", PAGE))
    data = base64.b64encode(picture().source).decode()
    changed = code.replace("http://127.0.0.1:8000", running.url)
    changed = changed.replace("base64,...", f"base64,{data}").replace('"nano"', '"tiny"')
    changed = changed.replace("    messages=", "    max_tokens=8, messages=")
    changed = changed.replace("responses.create(", "responses.create(max_output_tokens=8, ")
    exec(compile(changed, "docs/server.md", "exec"), {})
    chat, responses = capsys.readouterr().out.strip().split("vision\n")
    assert chat and responses


def test_the_page_of_live_transcription_runs(
    running: Running,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", (DOCS / "live.md").read_text())
    monkeypatch.chdir(tmp_path)
    talk = say(range(3), [0.8, 0.1, 0.1, 1.0], 24000)
    (tmp_path / "speech.pcm").write_bytes(np.round(32767 * talk).astype("<i2").tobytes())
    changed = code.replace("http://127.0.0.1:8000", running.url).replace('"nano"', '"tiny"')
    exec(compile(changed, "docs/live.md", "exec"), {})
    assert capsys.readouterr().out.strip()
