"""The precision of a run: chosen once, recorded, on its page, and that of all its processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from polyphi.devices import precision
from polyphi.devices.precision import Choice
from polyphi.train import state
from polyphi.train.options import TrainOptions
from polyphi_recipe.graph import parallel, processes
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.report import page
from tests.core.devices.test_precision import fresh  # noqa: F401


def recorded(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def test_a_run_has_one_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "missing", lambda dtype: "this CPU is <old>")
    assert "precision" not in Run("micro", tmp_path).__dict__
    assert recorded(tmp_path) == {"size": "micro", "seed": 0}, "nothing is chosen before training"
    assert Run("micro", tmp_path).precision == "fp32"
    values = {"precision": "fp32", state.REASON: "this CPU is <old>"}
    assert recorded(tmp_path) == {"size": "micro", "seed": 0, **values}

    monkeypatch.setenv(precision.VARIABLE, "bf16")
    assert Run("micro", tmp_path).choice == Choice("fp32", "this CPU is <old>")
    assert (
        Run("micro", tmp_path, options=TrainOptions(precision="fp32")).choice.reason
        == "this CPU is <old>"
    )
    with pytest.raises(ValueError, match=r"in fp32, .* in bf16 .*choose another --out"):
        Run("micro", tmp_path, options=TrainOptions(precision="bf16"))

    page.write(tmp_path, stages_of_run(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["precision"] == {"precision": "fp32", "reason": "this CPU is <old>"}
    assert "fp32: this CPU is &lt;old&gt;" in (tmp_path / "report.html").read_text()
    assert "fp32: this CPU is <old>" in (tmp_path / "report.md").read_text()


def test_branches_get_the_precision_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "missing", lambda dtype: "this CPU is old")
    commands: dict[str, list[str]] = {}
    monkeypatch.setattr(processes, "run_parallel", lambda new, report: commands.update(new))
    run = Run("micro", tmp_path)
    parallel.train_branches(run.recipe, run.folder, run.seed, run.precision)
    assert len(commands) == 2
    for command in commands.values():
        assert command[command.index("--precision") + 1] == "fp32"
