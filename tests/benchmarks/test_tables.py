"""Pages of docs/tables: each measurement says how it was made, and benchmarks/tables.py tells which are older than the
code."""

import datetime
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from polyphi_eval.baselines import Measure, TaskResult

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "docs" / "tables").glob("*.md"))
MANIFEST = ROOT / "models/nano/polyphi_nano/manifest.json"
PAGE = ROOT / "docs/tables/nano.md"
HEADER = """# Title

- commit: `{commit}` (measured at)
- date: 2026-11-30
- machine: two cores
- command: `make nano`,
  twice
- measures: `code.py`

| a |
|---|
"""


@pytest.fixture
def tables(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("tables")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture
def history(tmp_path: Path, tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three commits of a repository: one changes code.py, one the package, and the last code.py again."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "polyphi" / "sub").mkdir(parents=True)
    commits = []
    for name in ("code.py", "polyphi/sub/a.py", "code.py"):
        (tmp_path / name).write_text(f"{len(commits)}\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message", name)
        commits.append(git(tmp_path, "rev-parse", "HEAD"))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "TABLES", tmp_path)
    return commits


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_measurements_say_how_they_were_made(path: Path, tables: ModuleType) -> None:
    rows = list(tables.measurements(path))
    assert rows
    for row in rows:
        assert datetime.date.fromisoformat(row.date)
        assert row.measures and all((ROOT / name).exists() for name in row.measures), row


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_commits_of_measurements_are_known(path: Path, tables: ModuleType) -> None:
    """But in a shallow clone, and in a source archive, which have no history."""
    shallow = (
        not (ROOT / ".git").exists() or tables.git("rev-parse", "--is-shallow-repository") == "true"
    )
    for row in tables.measurements(path):
        age = tables.commits_since(row)
        assert shallow or age is not None, row
        if age is not None:
            assert row.date >= tables.git("show", "-s", "--format=%as", row.commit), row


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_programs_of_measurements_exist_or_existed(path: Path, tables: ModuleType) -> None:
    """Where the history is whole, git has the programs that were removed since."""
    whole = (ROOT / ".git").exists() and tables.git(
        "rev-parse", "--is-shallow-repository"
    ) == "false"
    for row in tables.measurements(path):
        programs = re.findall(r"(?:benchmarks|tests)/[\w./]+", row.command)
        programs += [f"benchmarks/{n}.py" for n in re.findall(r"polyphi bench (\w+)", row.command)]
        for name in programs:
            if whole and not (ROOT / name).exists():
                assert tables.git("rev-list", "-1", "HEAD", "--", name), (row, name)


def test_a_table_is_older_than_the_code_by_commits(
    history: list[str],
    tables: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, commit in (("old", history[0]), ("new", history[2]), ("unknown", "0123456789")):
        (tmp_path / f"{name}.md").write_text(HEADER.format(commit=commit))
    ages = {
        path.stem: [tables.commits_since(row) for row in tables.measurements(path)]
        for path in tmp_path.glob("*.md")
    }
    assert ages == {"old": [1], "new": [0], "unknown": [None]}
    (row,) = tables.measurements(tmp_path / "old.md")
    assert row.command == "`make nano`, twice" and row.title == "Title"
    tables.main([])
    assert "old.md" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        tables.main(["--strict"])
    for name in ("old", "unknown"):
        (tmp_path / f"{name}.md").unlink()
    tables.main(["--strict"])


@pytest.mark.parametrize("text", ["- machine: two cores\n", "- date: 2026-11-30\n"])
def test_a_missing_field_is_an_error(text: str, tables: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(HEADER.format(commit="0123456").replace(text, ""))
    with pytest.raises(ValueError, match="measures"):
        list(tables.measurements(path))


def test_a_table_without_a_header_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title\n\n| a |\n|---|\n")
    with pytest.raises(ValueError, match=r"a\.md"):
        list(tables.measurements(tmp_path / "a.md"))


def test_the_page_of_a_manifest(history: list[str], tables: ModuleType, tmp_path: Path) -> None:
    """A row has score, interval, baseline and verdict."""
    baselines = {"majority": Measure(0.1, 0.05, 0.2, "3"), "no_adapter": Measure(0.5, 0.4, 0.6)}
    best = ("no_adapter", 0.4, 0.2, 0.5, "beats")
    task = TaskResult("digit", "Digits", "vision", "accuracy", 40, 0.9, 0.8, 0.95, baselines, *best)
    manifest = {
        "commit": history[1][:8],
        "size": "nano",
        "seed": 7,
        "precision": {"precision": "bf16"},
        "environment": {"cpu": "EPYC", "cores": 2, "python": "3.11", "versions": {"torch": "2.13"}},
        "summary": {"seconds": 1300, "peak_bytes": 4.9e9, "core": 49, "core_beats": 36},
        "scores": [asdict(task) | {"core": True, "goal": None}],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    tables.main(["nano", str(tmp_path / "manifest.json")])
    (row,) = tables.measurements(tmp_path / "nano.md")
    assert history[1].startswith(row.commit) and "--seed 7" in row.command
    page = (tmp_path / "nano.md").read_text()
    assert "| Digits | accuracy | 90.0 % | [80.0, 95.0] | 40 | 50.0 % |" in page
    assert "**beats**" in page and "36 of 49" in page


def test_the_page_of_the_packaged_nano_model_is_current(tables: ModuleType) -> None:
    (row,) = tables.measurements(PAGE)
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    text = tables.nano_page(manifest, row.date)
    command = f"python benchmarks/tables.py nano {MANIFEST.relative_to(ROOT)}"
    assert PAGE.read_text(encoding="utf-8") == text, f"run `{command}`"
