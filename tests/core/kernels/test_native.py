"""The library of kernels: the reason if it is missing, and the cap of its instructions."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from polyphi import kernels
from polyphi.kernels import native


def test_without_a_library_there_is_a_reason(tmp_path: Path) -> None:
    """As after an installation without compiler: the package works, and reports why it is slower."""
    copy = shutil.copy(native.__file__, tmp_path)
    spec = importlib.util.spec_from_file_location("native_without_a_library", copy)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.path() == "none" and "compiler" in module.missing()


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
