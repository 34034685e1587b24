"""Who may import whom (docs/house.md): the table below is the architecture, this test its guard."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "polyphi"
LEAVES = {"chat", "batch", "dist", "logs", "endpoint", "sandbox", "normalize", "voice", "kernels"}
ROOMS = {"runtime", "processing", "model", "data", "engine", "train", "serve", "eval", "curate"}
MAY_IMPORT = {
    **{leaf: {"chat", "logs"} for leaf in LEAVES},
    "kernels": set(),
    "runtime": set(),
    "processing": LEAVES,
    "model": (LEAVES - {"dist"}) | {"runtime.heap"},
    "data": LEAVES | {"processing"},
    "engine": LEAVES | {"processing", "model", "runtime"},
    "train": LEAVES | {"data", "model", "runtime", "processing.grids"},
    "serve": LEAVES | {"engine", "runtime"},
    "eval": LEAVES | {"data.shards"},
    "curate": LEAVES | {"processing", "data.shards"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in ROOT.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Modules of polyphi that a file imports anywhere, in functions and for types too; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {
        name.removeprefix("polyphi").removeprefix(".")
        for name in found
        if name.split(".")[0] == "polyphi"
    }
    return {
        next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), name) for name in inner
    }


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.split(".")[0] in ROOMS | LEAVES))
def test_a_room_imports_only_what_it_may(name: str) -> None:
    room = name.split(".", maxsplit=1)[0]
    for target in IMPORTS[name] - {""}:
        other = target.split(".")[0]
        assert other == room or other in MAY_IMPORT[room] or target in MAY_IMPORT[room], (
            f"{name} imports {target}"
        )


def test_there_are_no_cycles() -> None:
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"import cycle: {' -> '.join((*path, name))}"
        if state.get(name) == 2:
            return
        state[name] = 1
        for target in sorted(IMPORTS.get(name, ())):
            if target and target != name:
                visit(target, (*path, name))
        state[name] = 2

    for name in sorted(MODULES):
        visit(name, ())


@pytest.mark.parametrize("word", ["utils", "common", "helpers", "base", "manager"])
def test_no_file_is_named_for_nothing(word: str) -> None:
    assert not [p for p in ROOT.rglob(f"*{word}*") if p.stem == word]


def test_transformers_and_peft_are_for_tests_only() -> None:
    for path in MODULES.values():
        text = path.read_text()
        for library in ("transformers", "peft"):
            assert f"import {library}" not in text and f"from {library}" not in text, (
                f"{path} imports {library}"
            )
