"""A tiny run for benchmarks that read one, and benchmarks by names that aren't the tests' own."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import published
import pytest
import torch
from train.small import write_corpora

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Load a script of benchmarks/, which may import its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{name}", BENCHMARKS / f"{name}.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A random model and three corpora, as a finished run leaves them."""
    run = tmp_path / "run"
    run.mkdir()
    published.write(run / "model", "native", torch.float32)
    write_corpora(tmp_path / "corpora")
    names = {"questions": "instructions", "pictures": "image_qa", "sounds": "asr"}
    for name, corpus in names.items():
        for split in ("train", "test"):
            shutil.copytree(tmp_path / "corpora" / name / "train", run / "data" / corpus / split)
    return run
