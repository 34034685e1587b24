"""What README and docs promise exists: the paths they name, the verbs they show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:polyphi|tests|docs|examples|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which isn't there"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which isn't there"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_verbs_exist(page: Path) -> None:
    from polyphi.cli import app

    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback} | {
        "cache",
        "eval",
    }
    blocks = re.findall(r"(?s)```\w*\n(.*?)```", page.read_text())
    for verb in re.findall(r"(?m)^\s*(?:\.venv/bin/)?polyphi ([a-z]+)", "\n".join(blocks)):
        assert verb in verbs, f"{page.name} shows polyphi {verb}"


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert target in targets, f"README shows make {target}"
