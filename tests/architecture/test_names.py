"""Names say what a value is, not what happened to it: past participles aren't names of values."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "polyphi"
PARTICIPLES = set(
    [
        "found",
        "told",
        "said",
        "made",
        "asked",
        "wanted",
        "held",
        "given",
        "shown",
        "kept",
        "gone",
        "taken",
        "meant",
        "heard",
    ]
)
ALLOWED = {"eval/read_aloud.py: heard"}
"""`heard` is a field of files that earlier versions wrote."""


def names(path: Path) -> list[str]:
    """Names that a file stores or takes as parameters."""
    stored = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg):
            stored.append(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stored.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            stored.append(node.attr)
    return stored


def test_values_are_not_named_by_participles() -> None:
    participles = {
        f"{path.relative_to(ROOT).as_posix()}: {name}"
        for path in ROOT.rglob("*.py")
        for name in names(path)
        if name.strip("_") in PARTICIPLES
    }
    assert participles <= ALLOWED
