"""Names say what a value is, not what happened to it: past participles aren't names of values. Names that were
replaced before the first release stay replaced."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

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
    r"\b_*(found|told|said|made|asked|wanted|held|given|shown|kept|gone|taken|meant|heard)_*\b"
)
STORED = re.compile(rf"{PARTICIPLE.pattern}\s*([=,:)(\]]| in\b)")
"""A participle before a character that follows names that are stored, defined or taken."""


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
        if STORED.search(path.read_text())  # parsing all files takes seconds
        for name in names(path)
        if PARTICIPLE.fullmatch(name)
    }
    assert not participles


SCRIPTS = (
    "benchmarks",
    "benchmarks/peers",
    "examples",
    "tests/clients",
    "tests/release",
    "tests/soak",
)


def test_no_script_hides_an_installed_package() -> None:
    """A script's folder is the first that Python imports from: a kernels.py hid a dependency of transformers."""
    scripts = {path.stem for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")}
    assert not scripts & {*metadata.packages_distributions(), *sys.stdlib_module_names}


REPLACED = re.compile(
    r"\b(who_learns|set_aside|wrong_steps|kv_cache_blocks_remembered|encoder_remembered_bytes"
    r"|fewbits|eightbit|half\.py|Budget\(rate|budget\.rate|quantis\w+"
    r"|Taught|LIVELY|known_(clips|pictures|texts)|VerifiableProblem|Likeness|InPieces"
    r"|transcription[./]silence|processing[./](decoder|decoder_child|grids)|curate[./](losses|spoken|pictures)"
    r"|serve[./](answers|frames|prompts|speech|stored)|polyphi_eval[./](query)|polyphi_recipe[./](remaining)"
    r"|benchmarks/(alone|bases|foreign|larger|leaks|planted|pictures|products|published|damaged"
    r"|interchange|precision_shapes|finetune_plans))\b"
    r"|--(together|shard|rate|context)[ =`\"]"
)
"""Names on disk, on the command line, in metrics and of modules, that have another name now."""


@pytest.mark.parametrize(
    "folder", ["polyphi", "polyphi_eval", "polyphi_recipe", "experiments", "docs"]
)
def test_replaced_names_are_gone(folder: str) -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md", ".html", ".js", ".toml", ".cpp", ".h")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if REPLACED.search(line)
    ]
    assert not lines, "\n".join(lines)
