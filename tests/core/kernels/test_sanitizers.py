"""The kernels with sanitizers: no access outside of a tensor, no overflow, and no cast of a number out of range."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import ROOT, completed

# "undefined" doesn't include casts of floats out of range.
SANITIZERS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
OTHERS = ("test_sanitizers", "test_emulated")
TESTS = sorted(str(p) for p in Path(__file__).parent.glob("test_*.py") if p.stem not in OTHERS)

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="there is no g++ on a Linux here"
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose library has sanitizers."""
    folder = tmp_path_factory.mktemp("watched")
    built = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(ROOT / "polyphi", folder / "polyphi", ignore=built)
    flags = f"{SANITIZERS} -g -fno-omit-frame-pointer"
    command = [sys.executable, "setup.py", "build_ext", "--force", "--build-lib", str(folder)]
    done = completed(
        *command,
        "--build-temp",
        str(folder / "objects"),
        CFLAGS=flags,
        CXXFLAGS=flags,
        LDFLAGS=SANITIZERS,
    )
    assert list((folder / "polyphi" / "kernels").glob("_native*")), done.stdout
    return folder


def run_sanitized(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the preloaded sanitizers on the copy."""
    libraries = [
        completed("g++", f"-print-file-name={name}").stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return completed(
        sys.executable,
        *arguments,
        cwd=folder,
        LD_PRELOAD=":".join(libraries),
        PYTHONPATH=str(folder),
        # Python and torch don't free all memory at exit. Errors must end the run, not only a test. GCC's fake stack
        # doesn't have the alignment that its code expects for registers of 64 bytes.
        ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="2",
    )


@pytest.mark.long
def test_the_sanitizer_detects_an_overflow(watched: Path) -> None:
    """A read beyond the end of a weight that is one byte too short."""
    code = """
import torch
from polyphi.kernels import linear, native
assert native.library() and "watched" in native.library()._name, native.library()
linear.check = lambda *_: None
weight = linear.IntWeight(torch.ones(32, 64, dtype=torch.int8), torch.ones(32, 1, dtype=torch.uint8))
packed = linear.pack(weight, 8)[: -linear.PANEL - 1].clone()
linear.linear(torch.ones(1, 64), packed, torch.ones(32), bits=8)
"""
    result = run_sanitized(watched, "-c", code)
    for text in ("AddressSanitizer", "is located 0 bytes after", "eight_bits"):
        assert result.returncode and text in result.stdout, result.stdout[-5000:]


@pytest.mark.long
@pytest.mark.parametrize("tests", TESTS, ids=lambda path: Path(path).stem)
def test_the_kernels_tests_pass_with_sanitizers(watched: Path, tests: str) -> None:
    result = run_sanitized(watched, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests)
    assert result.returncode == 0, result.stdout[-5000:]
    for text in ("AddressSanitizer", "runtime error"):
        assert text not in result.stdout, result.stdout[-5000:]
