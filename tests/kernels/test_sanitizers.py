"""The kernels under the compiler's own watch: no byte beside a tensor is read or written, nothing overflows, and no
number is cast to a type that can't hold it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, told

# Casts of floats that don't fit are no part of "undefined".
WATCHED = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
OTHERS = ("test_sanitizers", "test_emulated")
TESTS = sorted(str(p) for p in Path(__file__).parent.glob("test_*.py") if p.stem not in OTHERS)

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="there is no g++ on a Linux here"
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose library is watched."""
    folder = tmp_path_factory.mktemp("watched")
    built = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(ROOT / "polyphi", folder / "polyphi", ignore=built)
    flags = f"{WATCHED} -g -fno-omit-frame-pointer"
    command = [sys.executable, "setup.py", "build_ext", "--force", "--build-lib", str(folder)]
    done = told(
        *command,
        "--build-temp",
        str(folder / "objects"),
        CFLAGS=flags,
        CXXFLAGS=flags,
        LDFLAGS=WATCHED,
    )
    assert list((folder / "polyphi" / "kernels").glob("_native*")), done.stdout
    return folder


def under_watch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the watch loaded before all else, over the copy."""
    libraries = [
        told("g++", f"-print-file-name={name}").stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return told(
        sys.executable,
        *arguments,
        cwd=folder,
        LD_PRELOAD=":".join(libraries),
        PYTHONPATH=str(folder),
        # Python and torch keep what they have until they end. Hidden faults would only end a test, not the run.
        # GCC's stand-in for a stack doesn't give registers of 64 bytes the alignment that its own code counts on.
        ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="2",
    )


@pytest.mark.long
def test_the_watch_sees_what_it_is_for(watched: Path) -> None:
    """A weight one byte too short is read beyond its end."""
    code = """
import torch
from polyphi.kernels import linear, native
assert native.library() and "watched" in native.library()._name, native.library()
linear._check = lambda *_: None
packed = linear.pack8(torch.ones(32, 64, dtype=torch.int8))[:-1].clone()
linear.linear(torch.ones(1, 64), packed, torch.ones(32), bits=8)
"""
    found = under_watch(watched, "-c", code)
    for said in ("AddressSanitizer", "is located 0 bytes after", "eight_bits"):
        assert found.returncode and said in found.stdout, found.stdout[-5000:]


@pytest.mark.long
@pytest.mark.parametrize("tests", TESTS, ids=lambda path: Path(path).stem)
def test_the_kernels_own_tests_pass_under_watch(watched: Path, tests: str) -> None:
    found = under_watch(watched, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests)
    assert found.returncode == 0, found.stdout[-5000:]
    for said in ("AddressSanitizer", "runtime error"):
        assert said not in found.stdout, found.stdout[-5000:]
