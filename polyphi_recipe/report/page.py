"""The report page of a run: one self-contained HTML file, the same as Markdown, and every number as JSON.

>>> write(Path("runs/nano"))
PosixPath('runs/nano/report.html')

`collect` reads the run's folder into one dictionary, `report.json`; the pages are rendered from that dictionary alone
(and the media that it names by hash), so that every number on a page is in the file. Scores are computed again from
`eval/*.jsonl`. Sections without data (such as stages that haven't run) are omitted.
"""

import importlib.metadata
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.parts import parts
from polyphi.devices import cpu
from polyphi.hub import model_card
from polyphi.runtime.files import sha256, write_whole
from polyphi.train.report.stage import stage_row
from polyphi.train.stage import Stage
from polyphi.train.state import recorded
from polyphi_eval import evaluation
from polyphi_eval.baselines import rescore
from polyphi_eval.heldout import CORE
from polyphi_eval.report import card
from polyphi_recipe.corpora import cards
from polyphi_recipe.raw.packages import SOURCES
from polyphi_recipe.recipe.recipe import OWN_TASK, PARTS, RECORD
from polyphi_recipe.report import sections
from polyphi_recipe.report.samples import Draw
from polyphi_recipe.report.sections import render

POINTS = 140  # of a loss curve
PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "soundfile",
    "soxr",
    "pillow",
    "sacrebleu",
    "jiwer",
    "whisper-normalizer",
)

__all__ = ["collect", "render", "render_markdown", "write"]


def write(run: Path, stages: Sequence[Stage]) -> Path:
    """Write `report.json`, `report.html` and `report.md` into the run's folder, of its `stages` in order; returns the
    HTML's path."""
    run = Path(run)
    report, media = collect(run, stages)
    written = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False),
        "report.md": render_markdown(report),
        "report.html": render(report, media),
    }
    for name, text in written.items():
        write_whole(run / name, text)
    return run / "report.html"


# ---------------------------------------------------------------------- collecting


def collect(run: Path, stages: Sequence[Stage]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The report of a run, and the media of its samples by SHA-256."""
    results = rescore(run / "eval") if any((run / "eval").glob("*.jsonl")) else []
    rows = [stage_row(run / "stages" / stage.name, stage) for stage in stages]
    freeze = _load(run / "freeze.json", [])
    timings = _load(run / "timings.json", {})
    identity = _load(run / "run.json", {})
    recipe = identity.get("recipe")
    own = [r for r in results if r["task"].startswith(OWN_TASK)]
    draw = Draw(run, results, identity.get("seed"), own=recipe is not None)
    report = {
        "size": identity.get("size", "unnamed"),
        "recipe": recipe,
        "origins": model_card.part_origins(_load(run / PARTS, {})),
        "generated": _load(run / RECORD, {}).get("generated", []),
        "seed": identity.get("seed"),
        "precision": asdict(choice) if (choice := recorded(identity)) else None,
        "summary": {
            "stages_done": sum(s["done"] for s in rows),
            "stages": len(rows),
            "tasks": len(results),
            "beats": sum(r["verdict"] == "beats" for r in results),
            "core": len(CORE),
            "core_beats": sum(r["core"] and r["verdict"] == "beats" for r in results),
            "own": len(own),
            "own_beats": sum(r["verdict"] == "beats" for r in own),
            "beats_by_modality": _count(r["modality"] for r in results if r["verdict"] == "beats"),
            "tasks_by_modality": _count(r["modality"] for r in results),
            "frozen_checks": len(freeze),
            "frozen_checks_equal": sum(
                e["logits_sha256_before"] == e["logits_sha256_after"] for e in freeze
            ),
            "seconds": timings.get("seconds", {}).get("total")
            or sum(timings.get("seconds", {}).values()),
            "peak_bytes": timings.get("peak_bytes"),
        },
        "stages": rows,
        "tasks": results,
        "cards": _cards(results),
        "benchmarks": evaluation.saved_results(run / evaluation.RUNS),
        "examples": draw.examples(),
        "gallery": draw.gallery(),
        "freeze": freeze,
        "claims": _claims(run),
        "parts": _parts(run),
        "data": _data(run),
        "timings": timings,
        "environment": _load(run / "environment.json", None) or environment(),
    }
    return report, draw.media


def _cards(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The parts of the exported folders' model cards that show the held-out tasks; `mini` was evaluated on none."""
    own: dict[str, list[Mapping[str, Any]]] = {"reasoning": [], "model": []}
    for task in sorted(results, key=lambda task: not task["task"].startswith(OWN_TASK)):
        own["reasoning" if task["corpus"].startswith("reasoning") else "model"].append(task)
    return {folder: card.of_heldout(tasks) for folder, tasks in own.items()}


def _load(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _count(items: Iterable[str]) -> dict[str, int]:
    counts_by_item: dict[str, int] = defaultdict(int)
    for item in items:
        counts_by_item[item] += 1
    return dict(counts_by_item)


def _claims(run: Path) -> list[dict[str, Any]]:
    """Results of the report's claims, in order."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in (run / "claims").glob("C*.json")]
    return sorted(results, key=lambda claim: int(claim["name"].removeprefix("C")))


def _parts(run: Path) -> list[dict[str, Any]]:
    """Numbers of parameters of each part of the finished model, with the report's."""
    if not (run / "model").exists():
        return []
    return [
        {"part": p.name, "parameters": p.parameters, "report": p.report}
        for p in parts(read_config(run / "model"))
    ]


def _data(run: Path) -> dict[str, Any]:
    """Corpora with their rows, warnings and examples of dropped rows, and sources with licence, origin and corpora."""
    corpora: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for path in sorted((run / "data").glob("*/*/manifest.json")):
        name, split, manifest = (
            path.parent.parent.name,
            path.parent.name,
            json.loads(path.read_text(encoding="utf-8")),
        )
        corpora.setdefault(name, {})[split] = {
            "rows": manifest["rows"],
            "read": manifest.get("read", 0),
            "dropped": manifest.get("dropped", {}),
            "dropped_examples": cards.dropped_examples(path.parent),
            "warning": cards.warning(path.parent),
            "sha256": sha256(path),
        }
        for source, rows in manifest.get("sources", {}).items():
            known = SOURCES.get(source)
            entry = sources.setdefault(
                source, {"rows": 0, "corpora": [], "licence": None, "origin": None, "what": None}
            )
            entry["rows"] += rows
            if name not in entry["corpora"]:
                entry["corpora"].append(name)
            entry["licence"] = known.licence if known else " / ".join(manifest.get("licences", {}))
            entry["origin"], entry["what"] = (known.origin, known.what) if known else (None, None)
    return {"corpora": corpora, "sources": sources}


def environment() -> dict[str, Any]:
    """The machine and the software versions on which results depend."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu.model_name(),
        "cores": cpu.usable(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "python": platform.python_version(),
        "versions": versions,
    }


# ---------------------------------------------------------------------- Markdown


def render_markdown(report: Mapping[str, Any]) -> str:
    """The page as Markdown, without images and audio."""
    template = sections.TEMPLATES.get_template("report.md")
    return template.render(report=report) + "\n"
