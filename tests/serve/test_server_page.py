"""docs/server.md: its Python runs against a real server."""

import base64
import re
from pathlib import Path

import pytest
from engine.conftest import picture
from serve.conftest import Running

PAGE = (Path(__file__).parents[2] / "docs/server.md").read_text()


def test_the_page_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", PAGE))
    data = base64.b64encode(picture().source).decode()
    changed = code.replace("http://127.0.0.1:8000", running.url)
    changed = changed.replace("base64,...", f"base64,{data}").replace('"nano"', '"tiny"')
    changed = changed.replace("    messages=", "    max_tokens=8, messages=")
    changed = changed.replace("input=", "max_output_tokens=8, input=")
    exec(compile(changed, "docs/server.md", "exec"), {})
    chat, responses = capsys.readouterr().out.strip().split("vision\n")
    assert chat and responses
