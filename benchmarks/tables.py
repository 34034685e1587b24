"""The tables of docs/tables: which are older than the code that they measure, and the table of the nano model.

    python benchmarks/tables.py                                              # commits since each measurement
    python benchmarks/tables.py --strict                                     # the exit code is 1 if there are any
    python benchmarks/tables.py nano models/nano/polyphi_nano/manifest.json  # writes docs/tables/nano.md

Each measurement begins with a list: `commit` (at which it was measured or recorded), `date`, `machine`, `command` (that
repeats it) and `measures` (paths of the code). The commits since are those that changed these paths. The nano model's
page is written from the manifest of the package polyphi-nano (models/nano/fill.py).
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "docs" / "tables"
FIELDS = ("commit", "date", "machine", "command", "measures")
NANO_PATHS = (
    "polyphi/train",
    "polyphi/model",
    "polyphi/kernels",
    "polyphi_recipe",
    "polyphi_eval",
)


@dataclass(frozen=True)
class Measurement:
    """The list that a measurement begins with; `title` is the heading above it."""

    file: str
    title: str
    commit: str
    date: str
    machine: str
    command: str
    measures: tuple[str, ...]


def git(*arguments: str) -> str:
    """The output of a git command. Raises subprocess.CalledProcessError."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ---------------------------------------------------------------------- age


def measurements(path: Path) -> Iterator[Measurement]:
    """The measurements of a page. Raises ValueError for a list without a field, and a table without a list above it."""
    title, measured = "", False
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        if block.startswith("#"):
            title = block.lstrip("#").strip()
        elif block.startswith("- commit:"):
            measured = True
            yield measurement(path, title, block)
        elif block.startswith("|") and not measured:
            raise ValueError(
                f"expected a list of {', '.join(FIELDS)} above the first table of {path}"
            )


def measurement(path: Path, title: str, block: str) -> Measurement:
    lines = re.sub(r"\n +", " ", block).splitlines()
    values = dict(line.removeprefix("- ").split(": ", 1) for line in lines)
    if tuple(values) != FIELDS or not all(values.values()):
        raise ValueError(
            f"expected {', '.join(FIELDS)}, found {', '.join(values)} in {path}: {title}"
        )
    (commit,) = re.findall(r"`([0-9a-f]{7,40})`", values["commit"])
    paths = tuple(re.findall(r"`([^`]+)`", values["measures"]))
    return Measurement(
        path.name, title, commit, values["date"], values["machine"], values["command"], paths
    )


def commits_since(row: Measurement) -> int | None:
    """How many commits have changed what a measurement measures; None where its commit isn't known, as in a shallow
    clone."""
    try:
        return int(git("rev-list", "--count", f"{row.commit}..HEAD", "--", *row.measures))
    except subprocess.CalledProcessError:
        return None


def show_ages(rows: Sequence[Measurement]) -> bool:
    """Print a table of the measurements; returns whether the code of one has changed or its commit isn't known."""
    table = Table("file", "measurement", "commit", "date", "commits since", box=None)
    ages = [commits_since(row) for row in rows]
    for row, age in zip(rows, ages, strict=True):
        count = "unknown" if age is None else str(age)
        table.add_row(row.file, row.title, row.commit, row.date, count)
    console = Console()
    console.width = max(120, console.width)
    console.print(table)
    return any(age != 0 for age in ages)


# ---------------------------------------------------------------------- the nano model


def nano_page(manifest: Mapping[str, Any], date: str) -> str:
    """The page of the nano model, from the manifest of its package."""
    from polyphi.train.report.page import duration
    from polyphi_eval.report import heldout
    from polyphi_recipe.report.sections import BUILT_IN, memory

    machine, summary = manifest["environment"], manifest["summary"]
    precision = (manifest["precision"] or {}).get("precision", "unknown precision")
    size, seed = manifest["size"], manifest["seed"]
    core, others = ([t for t in manifest["scores"] if t["core"] is flag] for flag in (True, False))
    blocks = [
        f"# Tables: the model of the package polyphi-{size}",
        f"- commit: `{manifest['commit']}` (measured at)\n- date: {date}\n"
        f"- machine: {machine['cores']} cores of {machine['cpu']}, {precision}; "
        f"Python {machine['python']}, torch {machine['versions']['torch']}\n"
        f"- command: `polyphi reproduce {size} --out runs/{size} --seed {seed}`\n"
        f"- measures: {', '.join(f'`{path}`' for path in NANO_PATHS)}",
        "`python benchmarks/tables.py nano` writes this page from the package's `manifest.json`. The run took "
        f"{duration(summary['seconds'])} and {memory(summary['peak_bytes'])}. {summary['core_beats']} of "
        f"{summary['core']} core tasks beat their baselines.",
        *("## Core tasks", BUILT_IN["about_core"], heldout.markdown(core).strip()),
        *("## Other tasks", BUILT_IN["about_beyond"], heldout.markdown(others).strip()),
    ]
    return "\n\n".join(blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="exit code 1 for older tables")
    nano = parser.add_subparsers(dest="page").add_parser("nano", help="write docs/tables/nano.md")
    nano.add_argument("manifest", type=Path)
    options = parser.parse_args(arguments)
    if options.page == "nano":
        manifest = json.loads(options.manifest.read_text(encoding="utf-8"))
        text = nano_page(manifest, git("show", "-s", "--format=%as", manifest["commit"]))
        (TABLES / "nano.md").write_text(text, encoding="utf-8")
    else:
        rows = [row for path in sorted(TABLES.glob("*.md")) for row in measurements(path)]
        if show_ages(rows) and options.strict:
            sys.exit(1)


if __name__ == "__main__":
    main()
