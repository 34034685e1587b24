"""Fill the package polyphi-nano from a finished run of the recipe.

    python models/nano/fill.py runs/nano [--commit COMMIT]

Writes the model, manifest.json (commit, seed, scores, hashes, data with their licences), and held-out samples with the
model's answers, whose images and clips may be published.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample, Shards
from polyphi.runtime.files import RECORD, sha256, write_json
from polyphi.train.state import code_revision
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi_eval.baselines import read
from polyphi_eval.heldout import find
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.report.page import collect
from polyphi_recipe.report.samples import Draw

PACKAGE = Path(__file__).parent / "polyphi_nano"
ROWS = 20
DEMO = ("digit", "asr_digits")
"""Tasks of which a sample is always among the rows: pages of the documentation use their media."""
SUFFIXES = {b"\x89PNG": ".png", b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}
SCORE = (
    *("task", "title", "modality", "metric", "n", "score", "low", "high", "core", "goal"),
    *("baselines", "best", "margin", "margin_low", "margin_high", "verdict"),
)
"""What the manifest has of a task's result; benchmarks/tables.py writes docs/tables/nano.md from it."""


def fill(run: Path, commit: str | None, package: Path = PACKAGE) -> None:
    """Replace the package's files by those of a run at a commit, by default the checkout's. Raises ValueError for a run
    that isn't finished."""
    if not (run / "model" / "config.json").exists() or not (run / "report.json").exists():
        raise ValueError(f"expected a finished run, found no model and report in {run}: make nano")
    commit = commit or commit_of(run)
    for name in ("model", "media"):
        shutil.rmtree(package / name, ignore_errors=True)
    (package / "manifest.json").unlink(missing_ok=True)  # written last
    # without the record of sizes and times, which a copy changes
    shutil.copytree(run / "model", package / "model", ignore=shutil.ignore_patterns(RECORD))
    (package / "media").mkdir()
    report, _ = collect(run, stages_of_run(run))
    rows = [row(package, entry) for entry in samples(run, report)]
    lines = (json.dumps(r, ensure_ascii=False) for r in rows)
    (package / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(package / "manifest.json", manifest(report, commit, package))


def samples(run: Path, report: Mapping[str, Any]) -> Iterator[tuple[Sample, Mapping[str, Any]]]:
    """Samples of `DEMO`, the page's examples and further samples, with the line of the model's answer; without those of
    the reasoning model, which the package doesn't have."""
    tasks = [t for t in report["tasks"] if not t["corpus"].startswith("reasoning")]
    draw = Draw(run, tasks, report["seed"])
    entries = [*draw.take(DEMO, len(DEMO)), *draw.examples(), *draw.gallery()][:ROWS]
    for entry in entries:
        (task,) = find(entry["task"])
        (sample,) = (s for s in Shards(run / "data" / task.corpus / "test") if s.id == entry["id"])
        lines = read(run / "eval" / f"{task.name}.jsonl")
        (line,) = (x for x in lines if x["id"] == sample.id and x["condition"] == "with")
        yield sample, line


def row(package: Path, entry: tuple[Sample, Mapping[str, Any]]) -> dict[str, Any]:
    """A sample as JSON; its images and clips are written to `media`."""
    sample, line = entry
    (task,) = find(line["task"])
    return {
        "task": task.name,
        "id": sample.id,
        "messages": [content(package, task.name, message) for message in sample.prompt],
        "max_tokens": task.params(sample).max_tokens,
        "answer": line["answer"],
        "reference": sample.answer,
        "value": line["value"],
        "meta": {key: value for key, value in sample.meta.items() if key != "named"},  # boxes
        "source": sample.source,
        "licence": sample.licence,
    }


def content(package: Path, task: str, message: Message) -> dict[str, Any]:
    parts: list[dict[str, str]] = []
    for part in message.parts:
        if isinstance(part, Image | Audio):
            assert isinstance(part.source, bytes)
            suffix = next(s for start, s in SUFFIXES.items() if part.source.startswith(start))
            path = next(p for p in paths(package / "media" / task, suffix) if not p.exists())
            path.write_bytes(part.source)
            kind = "image" if isinstance(part, Image) else "audio"
            parts.append({"type": kind, "file": f"media/{path.name}"})
        else:
            assert isinstance(part, Text)
            parts.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": parts} | (
        {"tools": message.tools} if message.tools else {}
    )


def paths(stem: Path, suffix: str) -> Iterator[Path]:
    """Names for the media of a task: digit.png, digit-2.png, and so on."""
    yield stem.with_name(stem.name + suffix)
    yield from (stem.with_name(f"{stem.name}-{i}{suffix}") for i in count(2))


def manifest(report: Mapping[str, Any], commit: str, package: Path) -> dict[str, Any]:
    files = sorted(p for name in ("model", "media") for p in (package / name).rglob("*"))
    files.append(package / "rows.jsonl")
    data = report["data"]["sources"]
    return {
        "commit": commit,
        "size": report["size"],
        "seed": report["seed"],
        "precision": report["precision"],
        "environment": report["environment"],
        "summary": report["summary"],
        "scores": [{key: task[key] for key in SCORE} for task in report["tasks"]],
        "data": {
            name: {k: d[k] for k in ("rows", "licence", "origin")} for name, d in data.items()
        },
        "sha256": {p.relative_to(package).as_posix(): sha256(p) for p in files if p.is_file()},
    }


def commit_of(run: Path) -> str:
    """The checkout's commit. Raises ValueError for a run of other sources."""
    manifests = run.glob("stages/*/manifest.json")
    if {json.loads(path.read_text())["code"] for path in manifests} != {code_revision()}:
        raise ValueError(
            f"expected a run of the present sources in {run}, found one of others: name its commit with --commit"
        )
    command = ["git", "-C", str(PACKAGE), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", help="at which the run was trained; default: the present one")
    options = parser.parse_args(arguments)
    try:
        fill(options.run, options.commit)
    except ValueError as error:
        parser.error(str(error))
    size = sum(p.stat().st_size for p in PACKAGE.rglob("*") if p.is_file())
    print(f"{PACKAGE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
