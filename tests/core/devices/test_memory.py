"""Free memory with simulated limits, and the engine's capacity that follows from it."""

from pathlib import Path

import pytest
import torch

from polyphi.devices import cgroup, memory
from polyphi.engine.cache import token_bytes
from polyphi.engine.engine import Engine

CPU = torch.device("cpu")


def test_a_container_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    machine = memory.free_memory(CPU)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\nfile 100000\n")
    assert memory.free_memory(CPU) == 400000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) == pytest.approx(machine, rel=0.5)


def test_an_engine_takes_half_of_what_is_free(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most; with much memory that of 32 sequences of 2,048 tokens."""
    each = token_bytes(engine.model.config.decoder, torch.float32)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 320 * each + 1)
    assert Engine(engine.model, engine.processor).capacity == 320
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**15)
    assert Engine(engine.model, engine.processor).capacity == 32 * 2048
