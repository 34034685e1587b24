"""Names say what a value is, not what happened to it: past participles aren't names of values."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "polyphi",
    "polyphi_eval",
    "polyphi_recipe",
    "experiments",
    "tests",
    "benchmarks",
    "examples",
)
PARTICIPLE = re.compile(
    "_*(found|told|said|made|asked|wanted|held|given|shown|kept|gone|taken|meant|heard)_*"
)


def names(path: Path) -> set[str]:
    """Names that a file stores, defines as functions or takes as parameters."""
    stored = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg):
            stored.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stored.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stored.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            stored.add(node.attr)
    return stored


def test_values_are_not_named_by_participles() -> None:
    participles = {
        f"{path.relative_to(ROOT).as_posix()}: {name}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in names(path)
        if PARTICIPLE.fullmatch(name)
    }
    assert not participles
