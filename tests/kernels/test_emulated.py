"""The paths of CPUs that are not at hand, emulated: every one gives what plain C++ gives."""

import shutil
import subprocess
from pathlib import Path

import pytest

from polyphi import kernels

HERE = Path(__file__).parent
SOURCES = sorted(Path(kernels.__file__).parent.glob("*.cpp"))


@pytest.mark.long
def test_neon_gives_what_plain_code_gives(tmp_path: Path) -> None:
    compiler, emulator = (shutil.which(n) for n in ("aarch64-linux-gnu-g++", "qemu-aarch64"))
    if compiler is None or emulator is None:
        pytest.skip("needs the packages g++-aarch64-linux-gnu and qemu-user")
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-pthread", "-static"]
    program = tmp_path / "paths"
    sources = [HERE / "paths.cpp", *SOURCES]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    # The second CPU has no dot products: there plain code is chosen.
    for cpu, path in (("max", "NEON"), ("cortex-a53", "scalar")):
        command = [emulator, "-cpu", cpu, str(program)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        wanted = f"path {kernels.PATHS.index(path)},"
        assert told.returncode == 0 and told.stdout.startswith(wanted), told.stdout
