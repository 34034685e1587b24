"""The benchmark of fine-tuning at a size of seconds: the files for both sides, and our side."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.fixtures.variants import few


@pytest.fixture
def script(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("finetune")


def tiny(script: ModuleType, name: str):
    work = next(w for w in script.WORKS if w.name == name)
    return replace(work, batch_tokens=200, steps=3, context=200)


@pytest.mark.parametrize("name", few(["audio", "text", "image"], 1))
def test_our_side_trains_the_rows_of_the_plan(
    script: ModuleType, tiny_run: Path, tmp_path: Path, name: str
) -> None:
    work, folder = tiny(script, name), tmp_path / "files"
    folder.mkdir()
    script.write(work, tiny_run, folder)
    settings = json.loads((folder / "work.json").read_text())
    rows = torch.load(folder / "rows.pt", weights_only=True)
    assert len(settings["rates"]) == len(settings["steps"]) == 3
    assert all(sum(len(rows[i]["ids"]) for i in step) <= 200 for step in settings["steps"])

    result = script.ours(work, folder, None, "fp32")
    planned = sum(sum(rows[i]["supervise"]) for step in settings["steps"] for i in step)
    assert result["supervised"] == planned
    assert len(result["losses"]) == 3
    quantized = script.ours(work, folder, "int8", "fp32")
    assert quantized["trainable"] == result["trainable"]
    script.same_work({"ours": [result], "peer": [quantized]}, 0.05 * result["losses"][0])


def test_sides_that_differ_are_refused(script: ModuleType) -> None:
    side = {"trainable": 5, "supervised": 7, "losses": [2.0]}
    script.same_work({"ours": [side], "peer": [side]}, 0.1)
    for change in ({"trainable": 6}, {"supervised": 8}, {"losses": [2.5]}):
        with pytest.raises(AssertionError):
            script.same_work({"ours": [side], "peer": [{**side, **change}]}, 0.1)
