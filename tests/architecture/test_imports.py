"""Levels of the packages, which of them may import which (docs/architecture.md), and how long a file may be."""

import ast
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ROOTS = {name: CHECKOUT / name for name in ("polyphi", "polyphi_eval", "polyphi_recipe")}
LEVELS = (
    {"messages", "batch", "steps", "runtime", "kernels", "text"},
    {"processing", "model", "services"},
    {"data", "checkpoints", "quantization"},
    {"engine", "train", "curate"},
    {"transcription", "synthetic", "stages"},
    {"api", "serve", "corpora", "planning"},
    {"recipe"},
    {"cli"},
)
"""Packages of polyphi."""
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
MODULES_BESIDE_PACKAGES = {"api", "messages", "batch", "steps"}
WITHIN_A_LEVEL = {("checkpoints", "quantization"), ("text", "messages"), ("train", "engine")}
LEVEL_0 = LEVELS[0]
ONLY = {
    "model": LEVEL_0 - {"runtime"},
    "processing": LEVEL_0,
    "data": LEVEL_0 | {"processing", "services"},
    "serve": LEVEL_0 | {"engine", "transcription"},
    "curate": LEVEL_0 | {"processing", "services", "data"},
    "synthetic": LEVEL_0 | {"processing", "services", "data", "curate"},
}
"""What a package of polyphi may import, where that is less than all lower levels."""
EVAL_ONLY = LEVEL_0 | {"data.sample", "data.shards", "services"}
"""What polyphi_eval may import of polyphi: a model has the `Generate` protocol."""
EVAL_TOO = {
    "polyphi_eval.cli": {"cli.options"},
    "polyphi_eval.evaluation": {""},  # `polyphi.load` reads the model of a command line
}
LONGEST_FILE = 500
MOST_PARAMETERS = 12


def module_name(path: Path) -> str:
    """The name of a module; one of polyphi without "polyphi.", and "" for the package itself."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name.removeprefix("polyphi").removeprefix(".") if parts[0] == "polyphi" else name


MODULES = {module_name(p): p for root in ROOTS.values() for p in root.rglob("*.py")}
CORE = {name: path for name, path in MODULES.items() if not name.startswith("polyphi_")}


@cache
def imports_of(module: str) -> set[str]:
    """Modules of our packages that a module imports anywhere, in functions and for types too; "" is polyphi itself."""
    names, path = set(), MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {
        name.removeprefix("polyphi").removeprefix(".") if name.split(".")[0] == "polyphi" else name
        for name in names
        if name.split(".")[0] in ROOTS
    }
    return {
        next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), name) for name in inner
    }


@pytest.mark.parametrize("name", sorted(CORE))
def test_imports_go_down(name: str) -> None:
    package = name.split(".", maxsplit=1)[0]
    if not package:  # the public surface
        return
    assert package in LEVEL, f"polyphi/{package} has no level"
    for target in imports_of(name) - {""}:
        other = target.split(".")[0]
        if other == package or (package, other) in WITHIN_A_LEVEL:
            continue
        if package == "recipe" and other == "polyphi_eval":
            continue
        assert LEVEL[other] < LEVEL[package], f"{name} imports {target}"
        allowed = ONLY.get(package)
        assert allowed is None or other in allowed or target in allowed, f"{name} imports {target}"


def test_evaluation_knows_a_model_by_its_protocol() -> None:
    for name in (name for name in MODULES if name.split(".")[0] == "polyphi_eval"):
        for target in imports_of(name):
            allowed = EVAL_ONLY | EVAL_TOO.get(name, set())
            assert target in allowed or target.split(".")[0] in {*allowed, "polyphi_eval"}, (
                f"{name} imports {target or 'polyphi'}"
            )


def test_there_are_no_cycles() -> None:
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"import cycle: {' -> '.join((*path, name))}"
        if state.get(name) == 2:
            return
        state[name] = 1
        for target in sorted(imports_of(name) if name in MODULES else ()):
            if target and target != name:
                visit(target, (*path, name))
        state[name] = 2

    for name in sorted(MODULES):
        visit(name, ())


def test_every_module_is_in_a_package() -> None:
    root = ROOTS["polyphi"]
    beside = {name for name, path in CORE.items() if path.parent == root and name}
    assert beside - set(LEVEL) <= MODULES_BESIDE_PACKAGES
    assert {p.stem for p in root.glob("*.py")} == {"__init__", *MODULES_BESIDE_PACKAGES}


@pytest.mark.parametrize("word", ["utils", "common", "helpers", "base", "manager"])
def test_no_file_has_a_vague_name(word: str) -> None:
    assert not [path for path in MODULES.values() if path.stem == word]


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not {str(p): n for p, n in lengths.items() if n > LONGEST_FILE}


def test_no_function_has_many_parameters() -> None:
    """Commands do: each option is a parameter."""
    for name, path in MODULES.items():
        if "cli" in name.split("."):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                parameters = [
                    p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg != "self"
                ]
                assert len(parameters) <= MOST_PARAMETERS, (
                    f"{path}: {node.name} takes {len(parameters)} parameters"
                )


def test_transformers_and_peft_are_for_tests_only() -> None:
    for path in MODULES.values():
        text = path.read_text()
        for library in ("transformers", "peft"):
            assert f"import {library}" not in text and f"from {library}" not in text, (
                f"{path} imports {library}"
            )
