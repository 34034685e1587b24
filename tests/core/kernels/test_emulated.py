"""The paths of other CPUs, emulated: every one equals the scalar path."""

import shutil
import subprocess
from pathlib import Path

import pytest

from polyphi import kernels

HERE = Path(__file__).parent
SOURCES = sorted(Path(kernels.__file__).parent.glob("*.cpp"))


def run_paths(folder: Path, machine: str, cpu: str) -> str:
    """The output of `paths.cpp` on an emulated CPU of `machine`, aarch64 or x86_64."""
    compiler, emulator = f"{machine}-linux-gnu-g++", f"qemu-{machine}"
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        pytest.skip(f"needs the packages g++-{machine.replace('_', '-')}-linux-gnu and qemu-user")
    program = folder / f"paths-{machine}"
    if not program.exists():
        flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-pthread", "-static"]
        sources = map(str, (HERE / "paths.cpp", *SOURCES))
        subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    command = [emulator, "-cpu", cpu, str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled programs, one per machine."""
    return tmp_path_factory.mktemp("paths")


@pytest.mark.long
@pytest.mark.parametrize(
    ("machine", "cpu", "path"),
    [
        ("aarch64", "max", "NEON i8mm"),
        ("aarch64", "neoverse-n1", "NEON"),  # it has dot products, and no matrix instructions
        ("aarch64", "cortex-a53", "scalar"),  # it has no dot products
        ("x86_64", "Haswell-noTSX", "AVX2"),  # instructions of AVX-512 would end the program
        ("x86_64", "Nehalem", "scalar"),
    ],
)
def test_an_emulated_cpu_equals_the_scalar_path(
    folder: Path, machine: str, cpu: str, path: str
) -> None:
    report = run_paths(folder, machine, cpu)
    assert report.startswith(f"path {kernels.PATHS.index(path)},"), report
