"""BigCodeBench's environment is required only for problems that need it."""

from pathlib import Path

import pytest

from polyphi_eval import programs
from polyphi_eval.benchmarks.text import bigcodebench
from polyphi_eval.environments import Environment
from polyphi_eval.sources import Data, read_rows, write_rows


def data_with_libs(root: Path, libs: str) -> Data:
    bigcodebench.benchmark.write_fixtures(root)
    (path,) = (root / bigcodebench.SOURCE.name / "data").iterdir()
    write_rows(path, [{**row, "libs": libs} for row in read_rows(path)])
    return Data(root)


def test_problems_of_the_standard_library_need_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Environment("bigcodebench", ("numpy",), interpreter="python1.5")
    monkeypatch.setattr(bigcodebench, "ENVIRONMENT", missing)
    monkeypatch.setattr(programs, "unavailable", lambda data=None: None)
    monkeypatch.delenv(bigcodebench.PYTHON, raising=False)
    assert bigcodebench.unable(data_with_libs(tmp_path, "['json']")) is None
    third_party = data_with_libs(tmp_path, "['numpy', 'json']")
    assert "python1.5" in str(bigcodebench.unable(third_party))
    monkeypatch.setenv(bigcodebench.PYTHON, "/usr/bin/python3")
    assert bigcodebench.unable(third_party) is None


def test_the_tasks_imports_precede_every_answer(tmp_path: Path) -> None:
    bigcodebench.benchmark.write_fixtures(tmp_path)
    first, *_ = bigcodebench.load(Data(tmp_path))
    trial = bigcodebench.trial("def other(): pass", first)
    assert trial.before == "def double_all(numbers):\n    pass\n"
    assert trial.tests["count"] == 3 and trial.python is None


def test_requirements_are_pinned() -> None:
    pins = bigcodebench.ENVIRONMENT.requirements
    assert len(pins) == len(set(pins)) > 70
    assert [pin for pin in pins if "==" not in pin] == ["python-Levenshtein-wheels"]
