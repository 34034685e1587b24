"""Environments are created once and atomically; errors have pip's output."""

from pathlib import Path

import pytest

from polyphi_eval.environments import Environment
from polyphi_eval.services import sandbox


def test_an_interpreter_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path))
    missing = Environment("old", ("numpy==1.21.2",), interpreter="python1.5")
    assert "needs python1.5" in str(missing.unavailable()) and not missing.ready
    with pytest.raises(ValueError, match=r"needs python1\.5"):
        missing.python()


@pytest.mark.long
def test_errors_have_pips_output_and_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path))
    wrong = Environment("wrong", (str(tmp_path / "nothing-here"),), dependencies=False)
    with pytest.raises(ValueError, match=r"environment of wrong .*nothing-here"):
        wrong.python(lambda line: None)
    assert not wrong.folder.exists()


@pytest.mark.long
def test_an_environment_is_created_once_and_code_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path))
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "seven"\nversion = "7"\n')
    (package / "seven.py").write_text("SEVEN = 7\n")
    own, lines = Environment("own", (str(package),)), list[str]()
    python = own.python(lines.append)
    assert own.ready and len(lines) == 2 and own.python(lines.append) == python and len(lines) == 2
    if sandbox.unavailable() is None:
        assert sandbox.run("import seven; print(seven.SEVEN)", python=python).stdout == "7\n"
        assert sandbox.run("import numpy", python=python).ended == "error"
