"""What README and docs promise exists: the paths and make targets that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(
        r"`((?:polyphi\w*|experiments|tests|docs|examples|benchmarks)/[\w./-]+)`", text
    ):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which isn't there"


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert target in targets, f"README shows make {target}"
