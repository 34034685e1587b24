"""Levels of the packages, which of them may import which (docs/architecture.md), and how long a file may be."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("polyphi", "polyphi_eval", "polyphi_recipe")
LEVELS = (
    {"types", "runtime", "devices", "kernels", "text"},
    {"model", "media", "processing"},
    {"prepared", "quantization", "checkpoints", "hub", "data"},
    {"engine", "decoding", "train", "transcription"},
    {"api", "finetuning", "planning", "doctor", "serve"},
    {"cli"},
    {"__main__"},
)
"""Packages and modules of polyphi."""
RECIPE_LEVELS = (
    {"text"},
    {"pipeline"},
    {"filters", "dedup", "stages"},
    {"raw"},
    {"syntheses"},
    {"synthetic"},
    {"corpora"},
    {"recipe"},
    {"imports", "report"},
    {"graph"},
    {"cli"},
)
"""Packages of polyphi_recipe."""
LEVEL_0 = LEVELS[0]
WITHIN_A_LEVEL = {
    ("types", "runtime"),
    ("devices", "runtime"),
    ("devices", "kernels"),
    ("processing", "media"),
    ("checkpoints", "quantization"),
    ("quantization", "prepared"),
    ("hub", "checkpoints"),
    ("hub", "quantization"),
    ("engine", "decoding"),
    ("transcription", "engine"),
    ("finetuning", "planning"),
}
MODULES_BESIDE_PACKAGES = {"__main__", "api"}
CURATION = {"media", "processing", "data"} | LEVEL_0
ONLY = {
    "polyphi.model": {"types"},  # no kernel: fast paths replace its modules from outside
    "polyphi.prepared": {"types", "runtime.steps", "devices", "kernels", "model"},
    "polyphi.media": LEVEL_0,
    "polyphi.processing": LEVEL_0 | {"media"},
    "polyphi.data": LEVEL_0 | {"media", "processing"},
    "polyphi.finetuning": LEVEL_0  # no engine: its callers pass a function that answers prompts
    | LEVELS[1]
    | LEVELS[2]
    | {"train", "planning"},
    "polyphi.serve": LEVEL_0 | {"engine", "decoding", "transcription", "media", "processing"},
    "polyphi_eval": LEVEL_0 | {"data.sample", "data.shards"},
    "polyphi_eval.cli": LEVEL_0 | {"cli.accuracy", "cli.application", "cli.options", "data.shards"},
    "polyphi_eval.evaluation": LEVEL_0 | {""},  # `polyphi.load` reads a command's model
    **{
        f"polyphi_recipe.{name}": CURATION
        for name in ("text", "pipeline", "filters", "dedup", "raw", "syntheses", "synthetic")
    },
}
"""What a package may import of polyphi, where that is less than all lower levels."""
LONGEST_FILE = 800
MOST_PARAMETERS = 12


def module_name(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for root in PACKAGES for p in (CHECKOUT / root).rglob("*.py")}


@cache
def parsed(module: str) -> tuple[set[str], list[str]]:
    """Our modules that a module imports anywhere, in functions and for types too; and its functions that take too many
    parameters."""
    names, path = set(), MODULES[module]
    long = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            parameters = [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg != "self"]
            if len(parameters) > MOST_PARAMETERS:
                long.append(f"{path}: {node.name} takes {len(parameters)} parameters")
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {name for name in names if name.split(".")[0] in PACKAGES}
    modules = {
        next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), name) for name in inner
    }
    return modules, long


def imports_of(module: str) -> set[str]:
    return parsed(module)[0]


def level(module: str) -> tuple[int, int]:
    """The package's place in (polyphi < polyphi_eval < polyphi_recipe), and the level inside it."""
    root, _, inner = module.partition(".")
    package = inner.partition(".")[0]
    levels = {"polyphi": LEVELS, "polyphi_recipe": RECIPE_LEVELS}.get(root, ())
    number = next((n for n, names in enumerate(levels) if package in names), len(levels))
    assert root != "polyphi" or not inner or number < len(LEVELS), f"polyphi/{package} has no level"
    return PACKAGES.index(root), number


def test_imports_go_down() -> None:
    modules = sorted(MODULES.keys() - {"polyphi"})
    assert not [f"{name} imports {target}" for name in modules for target in not_allowed(name)]


def not_allowed(name: str) -> Iterator[str]:
    """What a module imports and may not: of a package above it, or beside its own in the same level."""
    root, package = (*name.split("."), "")[:2]
    allowed = ONLY.get(name) or ONLY.get(f"{root}.{package}") or ONLY.get(root)
    for target in imports_of(name):
        other_root, other = (*target.split("."), "")[:2]
        inner = target.removeprefix("polyphi").removeprefix(".")
        limited = (
            allowed if other_root == "polyphi" and (root, package) != (other_root, other) else ()
        )
        if limited and not {other, inner} & set(limited):
            yield target
        if target == "polyphi" or (root, package) == (other_root, other):
            continue
        if root == other_root == "polyphi_eval" or (package, other) in WITHIN_A_LEVEL:
            continue
        if level(target) >= level(name):
            yield target


def test_there_are_no_cycles() -> None:
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"import cycle: {' -> '.join((*path, name))}"
        if state.get(name) == 2:
            return
        state[name] = 1
        for target in sorted(imports_of(name) if name in MODULES else ()):
            if target not in (name, *PACKAGES):
                visit(target, (*path, name))
        state[name] = 2

    for name in sorted(MODULES):
        visit(name, ())


def test_every_module_is_in_a_package() -> None:
    assert {p.stem for p in (CHECKOUT / "polyphi").glob("*.py")} == {
        "__init__",
        *MODULES_BESIDE_PACKAGES,
    }


def test_no_file_has_a_vague_name() -> None:
    vague = {"utils", "common", "helpers", "base", "manager"}
    assert not [path for path in MODULES.values() if path.stem in vague]


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not {str(p): n for p, n in lengths.items() if n > LONGEST_FILE}


def test_no_function_has_many_parameters() -> None:
    """Commands do: each option is a parameter."""
    assert not [
        line for name in MODULES if "cli" not in name.split(".") for line in parsed(name)[1]
    ]


def test_transformers_and_peft_are_for_tests_only() -> None:
    for path in MODULES.values():
        text = path.read_text()
        for library in ("transformers", "peft"):
            assert f"import {library}" not in text and f"from {library}" not in text, (
                f"{path} imports {library}"
            )


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("core", ("polyphi_eval", "polyphi_recipe", "experiments")),
        ("eval", ("polyphi_recipe", "experiments")),
    ],
)
def test_the_tests_of_a_package_need_no_package_above_it(
    folder: str, others: tuple[str, ...]
) -> None:
    imports = {
        f"{path.relative_to(CHECKOUT)}: {name}"
        for path in (CHECKOUT / "tests" / folder).rglob("*.py")
        if any(other in path.read_text() for other in others)
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] in others
    }
    assert not imports
