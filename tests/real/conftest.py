from pathlib import Path
from typing import Any

import pytest
import torch

from polyphi.api import Phi, load
from tests.fixtures import real


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32."""
    return real.checkpoint(tmp_path_factory.mktemp("real") / "smollm2")


@pytest.fixture(scope="session")
def phi(folder: Path) -> Phi:
    return load(folder)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """transformers on the checkpoint that polyphi wrote."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
