"""A stage of the recipe under torchrun."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import completed


@pytest.mark.long
def test_two_processes_train_a_recipe_stage(micro_run: Path, tmp_path: Path) -> None:
    """They share the stage's lock; without that the second one waited for the first for ever."""
    out = tmp_path / "run"
    shutil.copytree(micro_run, out)
    shutil.rmtree(out / "stages" / "text_1_pretrain")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    verb = ("-m", "polyphi.cli", "train", "text_1_pretrain", "--size", "micro", "--out", str(out))
    result = completed(*torchrun, *verb, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout
    manifest = json.loads((out / "stages" / "text_1_pretrain" / "manifest.json").read_text())
    assert manifest["precision"] == "fp32"
