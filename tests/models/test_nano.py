"""The package polyphi-nano: filled from a run, it answers its held-out samples as stored."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import polyphi
from polyphi.data.sample import Sample
from polyphi.runtime.files import sha256
from polyphi.train.options import TrainOptions
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams
from polyphi_eval.heldout import find

ROOT = Path(__file__).parents[2] / "models" / "nano"
ALLOWED = 2
"""Samples of twenty whose score may differ on another machine, which rounds differently."""


def message(package: Path, stored: dict[str, Any]) -> Message:
    kinds: dict[str, Callable[[bytes], Any]] = {"image": Image, "audio": Audio}
    parts = tuple(
        Text(part["text"])
        if part["type"] == "text"
        else kinds[part["type"]]((package / part["file"]).read_bytes())
        for part in stored["content"]
    )
    return Message(stored["role"], parts, stored.get("tools"))


def check(package: ModuleType) -> None:
    """Answers all rows, scores the answers, and compares both with what is stored."""
    assert package.__file__ is not None
    folder = Path(package.__file__).parent
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    phi = polyphi.load("nano", device="cpu")
    differ = 0
    for row in rows:
        messages = tuple(message(folder, stored) for stored in row["messages"])
        answer = phi.generate(messages, sampling=SamplingParams(max_tokens=row["max_tokens"])).text
        (task,) = find(row["task"])
        sample = Sample(
            row["id"],
            (*messages, Message.assistant(row["reference"])),
            row["source"],
            row["licence"],
            row["meta"],
        )
        assert task.scorer is not None
        assert np.isclose(task.scorer(row["answer"], sample).value, row["value"])
        differ += not np.isclose(task.scorer(answer, sample).value, row["value"])
    assert len(rows) >= 12 and differ <= ALLOWED
    manifest = json.loads((folder / "manifest.json").read_text())
    assert all(sha256(folder / name) == digest for name, digest in manifest["sha256"].items())
    assert {row["source"] for row in rows}.isdisjoint({"", None})
    assert manifest["scores"] and all(d["licence"] for d in manifest["data"].values())


def test_the_package_answers_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)  # a folder called nano would come first
    monkeypatch.delitem(sys.modules, "polyphi_nano", raising=False)
    check(importlib.import_module("polyphi_nano"))


@pytest.mark.long
def test_a_package_filled_from_a_micro_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyphi_recipe.graph.graph import Run

    run = Run("micro", tmp_path / "run", options=TrainOptions(precision="fp32"))
    run.reproduce()
    package = tmp_path / "site" / "polyphi_nano"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text((ROOT / "polyphi_nano" / "__init__.py").read_text())
    monkeypatch.syspath_prepend(ROOT)
    fill = importlib.import_module("fill")
    fill.fill(run.folder.path, "0" * 8, package)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "polyphi_nano", raising=False)
    check(importlib.import_module("polyphi_nano"))


def test_an_unfinished_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("fill").main([str(tmp_path)])
    assert "make nano" in capsys.readouterr().err


def test_a_run_of_other_sources_needs_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    fill = importlib.import_module("fill")
    manifest = tmp_path / "stages" / "text_1_pretrain" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"code": "0"}))
    with pytest.raises(ValueError, match="--commit"):
        fill.commit_of(tmp_path)
    manifest.write_text(json.dumps({"code": fill.code_revision()}))
    assert fill.commit_of(tmp_path) == subprocess.getoutput(
        f"git -C {ROOT} rev-parse --short=8 HEAD"
    )
