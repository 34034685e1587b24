"""The child process: values, errors, a crash, no answer."""

from pathlib import Path

import pytest

from polyphi.planning.doctor import probe


def test_a_crash_leaves_the_facts_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text("import os\nos.kill(os.getpid(), 4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("json", "no_such_package", "crashing", "csv")
    phases: list[str] = []
    result = probe.run(phases.append, phases={name: probe.Import(name) for name in names})
    assert result.facts == {"json": "2.0.9"}
    assert result.errors.keys() == {"no_such_package", "crashing"}
    assert "SIGILL" in result.errors["crashing"]
    assert phases == [*names[:3]]


def test_a_child_without_an_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = probe.run(limit=0.1, phases={"sleeping": probe.Import("sleeping")})
    assert "0 s" in result.errors["sleeping"] and not result.facts
