"""What is written on disk goes through `polyphi.runtime.files`, whose steps tests make fail (tests/faults)."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_imports import CHECKOUT, PACKAGES

FUNCTIONS = {
    "os": {"replace", "rename", "fsync", "link", "unlink", "remove", "truncate", "ftruncate"},
    "fcntl": {"flock", "lockf"},
    "shutil": {"rmtree", "move"},
}
METHODS = {"unlink", "rename", "touch", "symlink_to", "hardlink_to", "write_text", "write_bytes"}
WRITING = set("wax+")
PARTIAL = "writes into a partial folder or file, or one that its caller removes"
ELSEWHERE = {
    "polyphi/checkpoints/modalities.py": PARTIAL,
    "polyphi/checkpoints/write.py": PARTIAL,
    "polyphi/cli/export.py": PARTIAL,
    "polyphi/cli/inputs.py": PARTIAL,
    "polyphi/data/shards.py": PARTIAL,
    "polyphi/processing/tokenizer.py": PARTIAL,
    "polyphi/runtime/inputs.py": PARTIAL,
    "polyphi/train/aed.py": PARTIAL,
    "polyphi/train/checkpoint.py": "removes its partial folder after an error",
    "polyphi_recipe/dedup/decontaminate.py": PARTIAL
    + "; a log of decisions, written anew by each run",
    "polyphi_recipe/filters/quality.py": PARTIAL,
    "polyphi_recipe/raw/packages.py": PARTIAL,
    "polyphi_recipe/syntheses/synthesize.py": PARTIAL,
    "polyphi_recipe/syntheses/synthesis_step.py": "logs for people, written anew by each run",
    "polyphi_recipe/dedup/dedup.py": "hard links to signatures, and empty files that datatrove needs",
    "polyphi_eval/sources.py": PARTIAL,
    "polyphi_eval/environments.py": "removes the environment that pip could not fill",
    "polyphi_eval/fixtures": "synthetic data, of which a marker is written at the end",
    "polyphi_eval/public_prompts.py": "synthetic data, as above",
    "polyphi_eval/services/sandbox.py": "files of a sandbox, which is removed",
    "polyphi_eval/sql_results.py": "runs in a sandbox",
    "polyphi_eval/trial.py": "runs in a sandbox",
    "polyphi/hub/download.py": "a link, and a download that grows until its hash is checked",
    "polyphi/media/isolated.py": "memory of a child process",
    "polyphi/media/isolated_child.py": "a setting of the kernel",
    "polyphi/runtime/fork_server.py": "a setting of the kernel",
}
"""Modules that also write by themselves, and what."""


def writes(tree: ast.AST) -> Iterator[int]:
    """The lines of the calls that write, rename, delete, sync or lock a file."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (_changes(call) or WRITING & set(_mode(call))):
            yield call.lineno


def _changes(call: ast.Call) -> bool:
    """Whether a call is that of a method of a path, or of a function of the system."""
    if not isinstance(call.func, ast.Attribute):
        return False
    name, module = call.func.attr, getattr(call.func.value, "id", "")
    return name in FUNCTIONS.get(module, METHODS) or (name == "replace" and _of_path(call))


def _of_path(call: ast.Call) -> bool:
    """Whether `replace` is that of a path, with one argument; a text's has two, a dataclass's has names."""
    return len(call.args) == 1 and not call.keywords


def _mode(call: ast.Call) -> str:
    """The mode of a call of `open`, empty where it is none."""
    if getattr(call.func, "attr", getattr(call.func, "id", "")) != "open":
        return ""
    values = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return next((mode for mode in modes if set(mode) <= set("rwaxbt+")), "")


def modules_that_write() -> dict[str, list[int]]:
    """Lines by module, without `runtime.files`."""
    modules = (path for name in PACKAGES for path in sorted((CHECKOUT / name).rglob("*.py")))
    lines = {
        path.relative_to(CHECKOUT).as_posix(): list(writes(ast.parse(path.read_text())))
        for path in modules
    }
    return {name: at for name, at in lines.items() if at and name != "polyphi/runtime/files.py"}


def _allowed(module: str) -> str | None:
    return next((name for name in (module, str(Path(module).parent)) if name in ELSEWHERE), None)


def test_all_writes_go_through_files() -> None:
    assert {name: lines for name, lines in modules_that_write().items() if not _allowed(name)} == {}


def test_exceptions_are_used() -> None:
    assert set(ELSEWHERE) == {_allowed(name) for name in modules_that_write()} - {None}


def test_a_write_is_found() -> None:
    tree = ast.parse(
        "path.replace(other)\nos.fsync(1)\nopen('a', 'w')\npath.open('ab')\nshutil.rmtree(a)\npath.touch()\n"
        "text.replace('a', 'b')\nreplace(budget, steps=2)\npath.open()\npath.open('rb')\n"
    )
    assert list(writes(tree)) == [1, 2, 3, 4, 5, 6]
