"""What a report shows of a trained stage: parameters, losses, speed, checks of the frozen tensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.checkpoints.parts import PREFIXES, part_of
from polyphi.train.report.page import amounts
from polyphi.train.stage import Stage

POINTS = 140  # of a loss curve


def stage_row(folder: Path, declared: Stage) -> dict[str, Any]:
    """A stage's row: trained parameters, parents, losses, speed, and checks of the frozen tensors."""
    path = folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    records = training_records(folder / "metrics.jsonl")
    points = loss_points(records)
    learned = [row for row in manifest.get("trainable", ()) if row["module"] in declared.trainable]
    learned = learned or [{"module": glob, "lr": lr} for glob, lr in declared.trainable.items()]
    frozen = _frozen(manifest)
    tenth = max(1, len(points) // 20)
    return {
        "name": declared.name,
        "done": bool(manifest),
        "parents": list(declared.parents),
        "objective": type(declared.objective).__name__,
        "learned": learned,
        "learned_parts": _in_order(p for entry in learned for p in part_of(entry["module"])),
        "parts": _in_order(p for tensor in frozen["names"] for p in part_of(tensor)),
        "steps": manifest.get("steps"),
        "counters": manifest.get("counters", {}),
        "seconds": manifest.get("seconds"),
        "speed": _speed(manifest),
        "waste": {
            name: round(sum(r[name] for r in records) / len(records), 4) if records else None
            for name in ("padding", "padding_share")
        },
        "loss_first": _mean([p[1] for p in points[:tenth]]),
        "loss_last": _mean([p[1] for p in points[-tenth:]]),
        "curve": points,
        "frozen_tensors": len(frozen["names"]),
        "frozen_changed": frozen["changed"],
        "frozen_sha256": frozen["sha256"],
    }


def _in_order(parts: Iterable[str]) -> list[str]:
    distinct = set(parts)
    return [name for name in PREFIXES if name in distinct]


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _speed(manifest: Mapping[str, Any]) -> dict[str, float]:
    """A stage's training throughput per second."""
    counters, seconds = manifest.get("counters", {}), manifest.get("seconds")
    if not seconds:
        return {}
    return {key: round(counters[key] / seconds, 2) for key in amounts(counters)}


def training_records(path: Path) -> list[dict[str, Any]]:
    """The records of a stage, the last of each step, without incomplete lines of an interrupted run."""
    by_step: dict[int, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(text)
                float(record["loss"])
                by_step[int(record["step"])] = {"padding": 0.0, "padding_share": 0.0, **record}
            except (ValueError, KeyError, TypeError):
                continue
    return [by_step[step] for step in sorted(by_step)]


def loss_points(records: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """[step, loss] of a stage, averaged down to POINTS."""
    size = max(1, -(-len(records) // POINTS))
    groups = (records[i : i + size] for i in range(0, len(records), size))
    return [[g[-1]["step"], round(sum(r["loss"] for r in g) / len(g), 4)] for g in groups]


def _frozen(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the frozen tensors, those whose SHA-256 changed, and one hash over all of them."""
    frozen = manifest.get("frozen", {})
    before, after = ({name: pair[i] for name, pair in frozen.items()} for i in (0, 1))
    digest = (
        hashlib.sha256(json.dumps(sorted(after.items())).encode()).hexdigest() if after else None
    )
    return {
        "names": sorted(before),
        "changed": [k for k in before if before[k] != after[k]],
        "sha256": digest,
    }
