"""Extras by what people do: what a part of the package imports is installed with its extra, and importing `polyphi` or
printing `--help` imports no large library."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from polyphi import cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = {"polyphi", "polyphi_eval", "polyphi_recipe", "experiments"}
IMPORT_NAMES = {
    "pillow": ["PIL"],
    "scikit-learn": ["sklearn"],
    "python-stdnum": ["stdnum"],
    "fastapi": ["fastapi", "pydantic", "pydantic_core", "starlette"],
    "jinja2": ["jinja2", "markupsafe"],
    "huggingface_hub": ["huggingface_hub", "packaging"],
    "datatrove": ["datatrove", "multiprocess"],
}
"""Distribution -> the packages that it brings and that polyphi imports, where that isn't its own name."""
HEAVY = (
    *(
        "torch",
        "transformers",
        "pyarrow",
        "pydantic",
        "fastapi",
        "datatrove",
        "matplotlib",
    ),
    *("tokenizers", "safetensors", "soundfile", "PIL", "huggingface_hub", "jinja2", "httpx2", "av"),
)
PARTS = {
    "": (
        *("polyphi.api", "polyphi.cli", "polyphi.cli.chat", "polyphi.cli.terminal"),
        *("polyphi.cli.transcribe", "polyphi.cli.captions", "polyphi.cli.inspect"),
        *("polyphi.checkpoints.write", "polyphi.hub.model_card", "polyphi.hub.push"),
        *("polyphi.transcription.transcript_files", "polyphi.transcription.capture"),
        *("polyphi.decoding.structured", "polyphi.checkpoints.parts", "polyphi_recipe.graph.plan"),
        *(
            f"polyphi_recipe.stages.{path.stem}"
            for path in (ROOT / "polyphi_recipe/stages").glob("[a-z]*.py")
        ),
    ),
    "serve": ("polyphi.serve.app", "polyphi.serve.run"),
    "train": ("polyphi.finetuning.run", "polyphi.finetuning.plan", "polyphi.engine.greedy"),
    "curate": (
        "polyphi_recipe.pipeline.pipeline",
        "polyphi_recipe.corpora.sums",
        "polyphi_recipe.corpora.asr",
        "polyphi_recipe.synthetic.images",
        "polyphi_recipe.corpora.lookup",
    ),
    "eval": ("polyphi_eval.evaluation", "polyphi_eval.run", "polyphi_eval.read_aloud"),
    "all": ("polyphi_recipe.graph.graph", "experiments.ablation"),
}
"""Extra -> modules that it must suffice for."""


def packages(extra: str) -> set[str]:
    """The packages that a requirement of polyphi with an extra, or without one (""), brings."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names: set[str] = set()
    for line in lines:
        if inner := re.match(r"polyphi\[(.*)\]", line):
            names.update(*(packages(name) for name in inner[1].split(",")))
        else:
            name = re.match(r"[\w-]+", line)
            assert name, line
            names.update(IMPORT_NAMES.get(name[0], [name[0].replace("-", "_")]))
    return names


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.exists()), None)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """What importing a file imports: not what its functions or its type checks do."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        nodes.extend(ast.iter_child_nodes(node))


def libraries(modules: list[str]) -> dict[str, str]:
    """Third-party package -> a file that imports it, of all files that importing the modules loads."""
    result: dict[str, str] = {}
    seen: set[Path] = set()
    while modules:
        path = file_of(modules.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            package = name.partition(".")[0]
            if package in PACKAGES:
                parents = name.split(".")
                modules += [".".join(parents[: i + 1]) for i in range(len(parents))]
            elif package not in sys.stdlib_module_names:
                result.setdefault(package, str(path.relative_to(ROOT)))
    return result


@pytest.mark.parametrize("extra", PARTS)
def test_an_extra_suffices_for_its_part(extra: str) -> None:
    names = list(PARTS[extra])
    assert all(map(file_of, names)), [name for name in names if not file_of(name)]
    brought = packages("") | (packages(extra) if extra else set())
    missing = {k: v for k, v in libraries(names).items() if k not in brought}
    assert not missing


def test_a_module_that_needs_an_extra_is_known_to_the_command_line() -> None:
    """A package that is imported at module level, and is not in the core, is in `EXTRAS`: a command prints one line."""
    unknown = {}
    core = packages("")
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for name in imports(path):
            package = name.partition(".")[0]
            if package not in core | PACKAGES | sys.stdlib_module_names | cli.EXTRAS.keys():
                unknown[package] = str(path)
    assert unknown.keys() <= {"pydantic_core"}  # pydantic, which imports it, is missing first


def test_every_named_extra_brings_its_package() -> None:
    for package, extras in cli.EXTRAS.items():
        for extra in extras:
            assert package in packages(extra), (package, extra)
    assert packages("all") >= cli.EXTRAS.keys()
    assert set(cli.COMMAND_EXTRAS.values()) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("pyarrow", "train mine.py --data x.jsonl", "train"),
        ("pyarrow", "train text_1_pretrain", "curate"),
        ("pyarrow", "plan finetune vision --data x.jsonl", "train"),
        ("pyarrow.parquet", "eval x", "eval"),
        ("datatrove", "eval x", "curate"),
        ("lxml_html_clean", "curate mine.py", "curate"),
        ("datatrove", "reproduce micro", "all"),
        ("fastapi", "serve x", "serve"),
        ("matplotlib", "export x", "train"),
    ],
)
def test_a_missing_package_names_the_extra_of_the_command(
    package: str,
    command: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert package.partition(".")[0] in line and f'[{extra}]"' in line


def test_no_hint_installs_a_package_of_that_name_from_an_index() -> None:
    """There is no release there: the command would fail, and may one day install someone else's package."""
    sources = [
        path for name in (*PACKAGES, "docs", "examples") for path in (ROOT / name).rglob("*.*")
    ]
    texts = [
        path for path in (*sources, ROOT / "README.md") if path.suffix in {".py", ".md", ".ipynb"}
    ]
    pattern = re.compile(r"pip install (-\S+ )*[\\\"']*polyphi\b")
    matches = {path for path in texts if pattern.search(path.read_text(encoding="utf-8"))}
    assert not matches, sorted(str(path.relative_to(ROOT)) for path in matches)


@pytest.mark.parametrize(
    "code",
    [
        "import polyphi; polyphi.Message.user('x')",
        "from polyphi.cli import main; main(['--help'])",
        "from polyphi.cli import main; main(['--version'])",
    ],
)
def test_import_and_help_load_no_large_library(code: str) -> None:
    script = f"{code}\nimport sys\nprint(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stderr.split() == []
