"""A tiny run for benchmarks that read one, and benchmarks by names that aren't the tests' own."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from tests.core.train.small import write_corpora
from tests.fixtures import published

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = BENCHMARKS / "peers"
"""The scripts of other engines' sides."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Load a script of benchmarks/, which may import its neighbours: some have the name of a folder of tests."""
    neighbours = {path.stem for folder in (BENCHMARKS, PEERS) for path in folder.glob("*.py")}
    for name in neighbours:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for folder in (BENCHMARKS, PEERS):
        monkeypatch.syspath_prepend(str(folder))

    def load(name: str, folder: Path = BENCHMARKS) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in neighbours:
        sys.modules.pop(name, None)


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A random model and three corpora, as a finished run leaves them."""
    run = tmp_path / "run"
    run.mkdir()
    published.write(run / "model", "native", torch.float32)
    model = load_checkpoint(run / "model")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # linears so large that answers depend on the prompts
        for name, tensor in model.named_parameters():
            if name.startswith("decoder.layers.") and tensor.ndim == 2 and ".lora." not in name:
                tensor.normal_(std=0.5, generator=generator)
    files = [run / "model" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    save_checkpoint(model, tmp_path / "larger", files=files)
    shutil.rmtree(run / "model")
    (tmp_path / "larger").rename(run / "model")
    write_corpora(tmp_path / "corpora")
    names = {"questions": "instructions", "pictures": "image_qa", "sounds": "asr"}
    for name, corpus in names.items():
        for split in ("train", "test"):
            shutil.copytree(tmp_path / "corpora" / name / "train", run / "data" / corpus / split)
    return run
