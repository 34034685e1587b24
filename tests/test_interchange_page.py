"""The Python code of docs/interchange.md, run on a tiny export."""

import re
from pathlib import Path

import pytest

from tests.fixtures import published

pytest.importorskip("transformers")
pytest.importorskip("peft")
PAGE = Path(__file__).parents[1] / "docs" / "interchange.md"


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.write(tmp_path / "exported", "native")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert set(names["model"].peft_config) == {"vision", "speech"}
    assert names["model"].active_adapter == "vision"
    inputs = names["processor"](text="which colour", return_tensors="pt")
    assert names["model"](**inputs).logits.isfinite().all()
