"""What README and docs promise exists: the paths and make targets that they name."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_named_paths_exist() -> None:
    path = re.compile(r"`((?:polyphi\w*|experiments|tests|docs|examples|benchmarks)/[\w./-]+)`")
    named = [(page.name, name) for page in PAGES for name in path.findall(page.read_text())]
    assert not [(page, name) for page, name in named if not (ROOT / name).exists()]


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert target in targets, f"README shows make {target}"
