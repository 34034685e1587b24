"""The package as others get it: a source archive holds what a wheel is made of, a wheel serves every Python of its
platform, and without a compiler it works too."""

import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.processes import ROOT, completed

NEWEST = (2, 28)
"""glibc of the manylinux that wheels are made for, which torch's own ask for."""
RUN = """
from pathlib import Path
import torch
import polyphi
from polyphi import kernels
from polyphi.kernels import linear
assert Path.cwd() in Path(polyphi.__file__).parents, polyphi.__file__
print(kernels.missing())
if kernels.missing() is None:
    ones = linear.IntWeight(torch.ones(8, 64, dtype=torch.int8), torch.ones(8, 1, dtype=torch.uint8))
    print(linear.linear(torch.ones(1, 64), linear.pack(ones, 8), torch.ones(8), bits=8, rotated=False).tolist())
"""
pytestmark = pytest.mark.long


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = completed(*command, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def built(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """What the package's own build makes of a folder: an "sdist" or a "wheel". What it leaves there is ignored."""
    source = shutil.copytree(source, out / "source")
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=source, **environment).splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive of a checkout."""
    folder = tmp_path_factory.mktemp("source")
    checkout = folder / "checkout"
    fallow = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("polyphi", "polyphi_eval", "polyphi_recipe"):
        shutil.copytree(ROOT / name, checkout / name, ignore=fallow)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, checkout)
    shutil.copy(ROOT / "polyphi_command.py", checkout)
    with tarfile.open(built("sdist", checkout, folder / "out")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (p for p in folder.glob("polyphi-*") if p.is_dir())
    return unpacked


def unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_source_archive_holds_every_source(source: Path) -> None:
    def sources(folder: Path) -> set[str]:
        files = (p for p in folder.glob("polyphi/**/*") if p.is_file() and p.suffix != ".so")
        return {str(p.relative_to(folder)) for p in files if "__pycache__" not in p.parts}

    assert sources(source) == sources(ROOT)
    assert {"setup.py", "LICENSE", "NOTICE"} <= {p.name for p in source.iterdir()}
    assert not (source / "tests").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_a_wheel_from_it_serves_every_python_of_the_platform(source: Path, tmp_path: Path) -> None:
    wheel = built("wheel", source, tmp_path)
    assert re.fullmatch(r"polyphi-[\d.]+-py3-none-\w+\.whl", wheel.name), wheel.name
    folder = unpacked(wheel, tmp_path / "installed")
    assert not list(folder.glob("polyphi/kernels/*.cpp")), "sources are no part of it"
    assert (folder / "polyphi_command.py").is_file(), "the program imports it"
    assert run(sys.executable, "-c", RUN, cwd=folder).splitlines() == ["None", str([[64.0] * 8])]
    library = folder / "polyphi" / "kernels" / "_native.so"
    check = str(ROOT / "tests/core/kernels/library.py")
    assert "scalar: 8-bit product" in run(sys.executable, "-S", check, str(library), cwd=tmp_path)
    assert not re.search(rb"\bPy[A-Z]\w+", library.read_bytes()), "it asks for a Python's functions"


@pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("objdump") is None or sys.platform != "linux",
    reason="there are no g++ and objdump on a Linux here",
)
def test_its_library_asks_for_no_newer_system_than_torch_does(source: Path, tmp_path: Path) -> None:
    folder = unpacked(built("wheel", source, tmp_path), tmp_path / "installed")
    library = str(folder / "polyphi" / "kernels" / "_native.so")
    needed = set(re.findall(r"NEEDED +(\S+)", run("objdump", "-p", library, cwd=tmp_path)))
    system = r"lib(c|m|stdc\+\+|gcc_s|pthread)\.so\.\d+|ld-linux.*"
    assert all(re.fullmatch(system, name) for name in needed), needed
    symbols = run("objdump", "-T", library, cwd=tmp_path)
    required = {tuple(map(int, v)) for v in re.findall(r"\(GLIBC_(\d+)\.(\d+)", symbols)}
    assert required and max(required) <= NEWEST, required
    # GCC 8, of manylinux_2_28's system, has 3.4.25.
    counts = {int(v) for v in re.findall(r"\(GLIBCXX_3\.4\.(\d+)\)", symbols)}
    assert max(counts, default=0) <= 25, counts


def test_without_a_compiler_the_wheel_works_and_says_what_is_missing(
    source: Path, tmp_path: Path
) -> None:
    none = {name: "/there/is/no/compiler" for name in ("CC", "CXX", "LDSHARED")}
    folder = unpacked(built("wheel", source, tmp_path, **none), tmp_path / "installed")
    assert not list(folder.glob("**/*.so"))
    completed = run(sys.executable, "-c", RUN, cwd=folder)
    assert completed == "they weren't built: there was no C++ compiler when polyphi was installed\n"
    help_ = run(sys.executable, "-m", "polyphi.cli", "--help", cwd=folder)
    assert "transcribe" in help_
