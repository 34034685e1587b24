"""The paths of CPUs that are not at hand, emulated: each gives the results of the scalar path."""

import shutil
import subprocess
from pathlib import Path

import pytest

from polyphi import kernels

HERE = Path(__file__).parent
SOURCES = sorted(Path(kernels.__file__).parent.glob("*.cpp"))
COMPILERS = {"aarch64": "aarch64-linux-gnu-g++", "x86_64": "x86_64-linux-gnu-g++"}


@pytest.mark.long
@pytest.mark.parametrize(
    "architecture, paths",
    [
        # Neoverse N1 has dot products of int8 but no matrix instructions. Cortex-A53 has no dot products and Westmere
        # no AVX2: both choose the scalar path.
        ("aarch64", {"max": "NEON i8mm", "neoverse-n1": "NEON", "cortex-a53": "scalar"}),
        ("x86_64", {"Haswell": "AVX2", "Westmere": "scalar"}),
    ],
    ids=COMPILERS,
)
def test_paths_give_the_results_of_the_scalar_path(
    tmp_path: Path, architecture: str, paths: dict[str, str]
) -> None:
    compiler = shutil.which(COMPILERS[architecture])
    emulator = shutil.which(f"qemu-{architecture}")
    if compiler is None or emulator is None:
        pytest.skip(f"needs {COMPILERS[architecture]} and qemu-{architecture} (package qemu-user)")
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-pthread", "-static"]
    program = tmp_path / "paths"
    sources = [HERE / "paths.cpp", *SOURCES]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    for cpu, path in paths.items():
        command = [emulator, "-cpu", cpu, str(program)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        expected = f"path {kernels.PATHS.index(path)},"
        assert result.returncode == 0 and result.stdout.startswith(expected), result.stdout
