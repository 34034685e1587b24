"""Free memory with simulated limits."""

from pathlib import Path

import pytest
import torch

from polyphi.devices import cgroup, memory

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
