"""The library of kernels: the reason if it is missing, and the cap of its instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyphi import kernels
from polyphi.kernels import native


def test_without_a_library_there_is_a_reason(tmp_path: Path) -> None:
    """As after an installation without compiler: the package works, and reports why it is slower."""
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from kernels.native import missing, path
print(path(), missing(), sep="|")
"""
    (tmp_path / "kernels").mkdir()
    source = Path(native.__file__).read_text()
    (tmp_path / "kernels" / "native.py").write_text(source)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("none|") and "compiler" in result.stdout


@pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
def test_the_environment_caps_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is loaded once per process, so the test removes the cap again."""
    try:
        monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "scalar")
        native.library.cache_clear()
        assert kernels.path() == "scalar" and not any(kernels.has(i) for i in range(1, 5))
        monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "AVX3")
        native.library.cache_clear()
        with pytest.raises(ValueError, match=r"one of SCALAR, AVX2, .*'AVX3'"):
            kernels.path()
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
        native.library()
        if "POLYPHI_MAX_CPU_ISA" not in os.environ:
            native.limit("NEON_I8MM")
