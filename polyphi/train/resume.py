"""Resuming a run: its identity, which must equal that of the checkpoint or manifest, and its precision.

A stage that was stopped resumes from its latest checkpoint and gives the results of one that never was: same samples,
same losses. Resuming raises an error where a setting that affects them has changed.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from polyphi.data.loader import Loader
from polyphi.runtime import distributed, precision
from polyphi.runtime.precision import Choice, MatrixProducts
from polyphi.train import checkpoint
from polyphi.train.stage import Budget, Stage

MANIFEST, TRAINED, METRICS, QUARANTINE, CHECKPOINTS = (
    "manifest.json",
    "trained.safetensors",
    "metrics.jsonl",
    "quarantine.jsonl",
    "checkpoints",
)
REASON = "precision_reason"
"""Key of the reason for a run's precision; it may differ between a run and its resumption."""


def identity(
    stage: Stage,
    budget: Budget,
    seed: int,
    precision: str,
    loader: Loader,
    base: str | None = None,
    early_stopping: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings that must be equal for a run to be resumed, with the types that JSON returns. `base` is the scheme of
    frozen weights that are quantized, `early_stopping` the settings that decide when a run ends early."""
    settings = {
        "stage": stage.name,
        "budget": dataclasses.asdict(budget),
        "seed": seed,
        "precision": precision,
        "learning_rates": dict(stage.trainable),
        "mix": dict(stage.data.weights),
        "adapter": dict(stage.data.adapter),
        "curriculum": stage.data.curriculum,
        "late": dict(stage.data.late),
        "in_words": stage.data.in_words,
        "objective": repr(stage.objective),
        "schedule": dataclasses.asdict(stage.schedule),
        "optimiser": {
            "weight_decay": stage.weight_decay,
            "betas": stage.betas,
            "clip_norm": stage.clip_norm,
            "ema": stage.ema,
        },
        "data": {
            name: manifest if "fresh" in manifest else [s["sha256"] for s in manifest["shards"]]
            for name, manifest in loader.manifests.items()
        },
        "early_stopping": early_stopping,
    }
    if base is not None:
        settings["base"] = base
    if stage.adapters:
        settings["adapters"] = {name: repr(adapter) for name, adapter in stage.adapters.items()}
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def recorded_precision(out: Path) -> Choice | None:
    """The precision of the stage in a folder, from its manifest or its latest readable checkpoint; None for none."""
    path = out / MANIFEST
    if path.exists():
        return recorded(json.loads(path.read_text()))
    for path in sorted((out / CHECKPOINTS).glob("step_*/state.json"), reverse=True):
        try:
            state = json.loads(path.read_text())
            return recorded({**state["identity"], REASON: state.get(REASON)})
        except (OSError, ValueError, KeyError):  # `Checkpoints.find` reports damaged ones
            continue
    return None


def recorded(values: Mapping[str, Any]) -> Choice | None:
    """The precision in a manifest or run.json, None where it has none."""
    if values.get("precision") not in precision.DTYPES:
        return None
    return Choice(values["precision"], values.get(REASON) or "as the run began")


def choose_precision(
    requested: str | Choice,
    out: Path,
    device: torch.device | str = "cpu",
    products: Callable[[], Sequence[MatrixProducts]] = tuple,
    rows: int = precision.ROWS,
    revise: Callable[[Choice], Choice] = lambda choice: choice,
) -> Choice:
    """The precision of a stage: `requested` unless that is "auto"; else that of the stage in `out`; else the faster one
    on this machine (runtime/precision.py), which `revise` may change. The first process decides for all; all processes
    call this together.

    Raises ValueError for an unknown value of `requested` or POLYPHI_PRECISION.
    """
    if isinstance(requested, Choice):
        return requested
    if requested != "auto":
        return precision.choose(requested)
    precision.pinned()  # raises for an unknown value in every process, before they wait for each other
    choice = None
    if distributed.rank() == 0:
        choice = recorded_precision(out) or revise(
            precision.choose(requested, device, products(), rows)
        )
    shared = distributed.all_gather(choice)[0]
    assert shared is not None
    return shared


def same_run(identity: Mapping[str, Any], before: Mapping[str, Any], out: Path) -> None:
    """Raise ValueError where a run differs from the one that `out` holds."""
    for key, value in identity.items():
        old = before.get(key)
        if old == value:
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping):  # only what differs
            keys = [k for k in {**old, **value} if old.get(k) != value.get(k)]
            old, value = ({k: m[k] for k in keys if k in m} for m in (old, value))
        raise ValueError(
            f"{out} holds a run made with {key} {old!r}, now it is {value!r}; "
            "use another folder, or remove that one to start the stage again"
        )


def must_continue(
    stored: checkpoint.Stored, out: Path, identity: Mapping[str, Any], frozen: Mapping[str, str]
) -> None:
    """Raise ValueError where a checkpoint is of another run: another identity, or other names or hashes of frozen
    tensors."""
    before = stored.state
    same_run(identity, before["identity"], out)
    names = {*frozen, *before["frozen"]}
    if changed := sorted(n for n in names if before["frozen"].get(n) != frozen.get(n)):
        raise ValueError(
            f"the checkpoint in {out} started from other weights: {len(changed)} of {len(names)} frozen tensors "
            f"differ, such as {', '.join(changed[:3])}; restore its parent stages, or remove {out} to start again"
        )


def finished(
    out: Path, identity: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The manifest of a finished stage; copies its trained tensors into `parameters`."""
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    same_run(identity, manifest, out)
    with torch.no_grad():
        for name, tensor in load_file(out / TRAINED).items():
            parameters[name].copy_(tensor)
    return manifest
