"""BigCodeBench's own environment is asked for where a problem needs it, and only there."""

from pathlib import Path

import pytest

from polyphi.eval import programs
from polyphi.eval.benchmarks.text import bigcodebench
from polyphi.eval.environments import Environment
from polyphi.eval.sources import Data, read_rows, write_rows


def rewritten(root: Path, libs: str) -> Data:
    bigcodebench.benchmark.write_fixtures(root)
    (path,) = (root / bigcodebench.SOURCE.name / "data").iterdir()
    write_rows(path, [{**row, "libs": libs} for row in read_rows(path)])
    return Data(root)


def test_problems_of_the_standard_library_need_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Environment("bigcodebench", ("numpy",), interpreter="python1.5")
    monkeypatch.setattr(bigcodebench, "ENVIRONMENT", lacking)
    monkeypatch.setattr(programs, "unavailable", lambda data=None: None)
    monkeypatch.delenv(bigcodebench.PYTHON, raising=False)
    assert bigcodebench.unable(rewritten(tmp_path, "['json']")) is None
    foreign = rewritten(tmp_path, "['numpy', 'json']")
    assert "python1.5" in str(bigcodebench.unable(foreign))
    monkeypatch.setenv(bigcodebench.PYTHON, "/usr/bin/python3")
    assert bigcodebench.unable(foreign) is None


def test_the_tasks_imports_stand_before_every_answer(tmp_path: Path) -> None:
    bigcodebench.benchmark.write_fixtures(tmp_path)
    first, *_ = bigcodebench.load(Data(tmp_path))
    made = bigcodebench.trial("def other(): pass", first)
    assert made.before == "def double_all(numbers):\n    pass\n"
    assert made.tests["count"] == 3 and made.python is None


def test_pins_are_pins() -> None:
    pins = bigcodebench.ENVIRONMENT.requirements
    assert len(pins) == len(set(pins)) > 70
    assert [pin for pin in pins if "==" not in pin] == ["python-Levenshtein-wheels"]
