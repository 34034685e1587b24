"""The CPU, read from simulated files."""

from pathlib import Path

import pytest

from polyphi.devices import cpu


def test_linux_names_the_cpu_and_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n"
    )
    monkeypatch.setattr(cpu, "INFO", info)
    assert cpu.model_name() == "A CPU @ 3 GHz"
    assert cpu.flags() == {"fpu", "avx2", "avx512_vnni"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert cpu.model_name()
    assert "asimddp" in cpu.flags()
    info.unlink()
    assert cpu.flags() == frozenset() and cpu.model_name()


def test_the_process_may_use_at_least_one_cpu() -> None:
    assert cpu.usable() >= 1 and cpu.physical_cores() >= 1
