"""A run as its folder holds it: what identifies it, its precision, how far it is (`TrainState`).

A stage that was stopped resumes from its latest checkpoint and gives the results of one that never was: same samples,
same losses. Resuming raises an error where a setting that affects them has changed.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyphi.data.loader import Loader, StepRows
from polyphi.devices import precision
from polyphi.devices.precision import Choice, MatrixProducts
from polyphi.runtime import distributed
from polyphi.text.quantity import quantity
from polyphi.train import checkpoint
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.stage import Budget, Stage

METRICS, QUARANTINE, CHECKPOINTS = "metrics.jsonl", "quarantine.jsonl", "checkpoints"
REASON = "precision_reason"
"""Key of the reason for a run's precision; it may differ between a run and its resumption."""
COUNTED = ("tokens", "supervised")
"""Numbers of a step's record that are summed over the run."""
MAX_QUARANTINED = 20
"""Samples with a non-finite loss that a run tolerates; with more, the cause isn't the data."""
MAX_REJECTED, MAX_REJECTED_IN_A_ROW = 10, 3
"""Rejected steps that end a run: more than the first number in all, or the second in a row."""
NORMS_KEPT = 100
"""Latest gradient norms, against which a spike is measured (options.py)."""
IDS_SHOWN = 20


def identity_of(
    stage: Stage,
    budget: Budget,
    seed: int,
    precision: str,
    loader: Loader,
    base: str | None,
    early_stopping: Mapping[str, Any] | None,
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
    """The precision of a stage: `requested` unless that is "auto"; else that of the stage in `out`; else that for
    this machine (devices/precision.py), which `revise` may change. The first process decides for all; all processes
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


def with_steps(identity: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The run's `identity` with another number of steps."""
    return {**identity, "budget": {**identity["budget"], "steps": steps}}


def earlier_model(exported: Path) -> Path:
    """The folder of a run's exported model while the run gets more steps."""
    return exported.with_name(f"{exported.name}-before")


def earlier_steps(identity: Mapping[str, Any], before: Mapping[str, Any]) -> int | None:
    """The number of steps of the run with the identity `before`, where the run with `identity` is the same with more;
    else None."""
    steps: int = before["budget"]["steps"]
    same = with_steps(identity, steps)
    more = identity["budget"]["steps"] > steps
    return steps if more and all(before.get(key) == same[key] for key in same) else None


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
        for name, tensor in checkpoint.read_trained(out).items():
            parameters[name].copy_(tensor)
    return manifest


@cache
def code_revision() -> str:
    """SHA-256 of the sources of polyphi and the packages beside it, which identifies the code behind a result."""
    hasher = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(root.glob("polyphi*/**/*.py")):
        hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()


class Diverged(RuntimeError):
    """Losses or gradients aren't finite, or spike, again and again."""


@dataclasses.dataclass
class TrainState:
    """The progress of a run.

    `step`: steps done. `draws`: samples drawn by the loader, of which `corrupt` were damaged. `seconds`: time in
    training. `counters`: sums over the run (tokens, samples, crops ..., samples skipped by corpus). `norms`: the latest
    gradient norms. `quarantined`: ids of samples with a non-finite loss. `rejected_steps` and `rejected_in_a_row`:
    steps whose update was rejected, in all and just now. `rollbacks`: times the run went back to a checkpoint.
    `evaluated_step`: the step of the last evaluation. `best_step` and `best_loss`: those of the evaluation with the
    lowest loss. `evaluations_since_best`: evaluations after it. `schedule_changes`: pairs of a step and the number of
    steps that the learning rate's schedule had before it, where that has grown.
    """

    step: int = 0
    draws: int = 0
    corrupt: int = 0
    seconds: float = 0.0
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    norms: list[float] = dataclasses.field(default_factory=list)
    quarantined: list[str] = dataclasses.field(default_factory=list)
    rejected_steps: int = 0
    rejected_in_a_row: int = 0
    rollbacks: int = 0
    evaluated_step: int = -1
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_since_best: int = 0
    schedule_changes: list[list[int]] = dataclasses.field(default_factory=list)

    def advance(self, data: StepRows) -> None:
        """Count a step, accepted or rejected: the loader continues after its draws."""
        self.step += 1
        self.draws, self.corrupt = data.draws, data.corrupt

    def count(
        self, data: StepRows, record: Mapping[str, Any], seconds: float, units: Iterable[str] = ()
    ) -> None:
        """Add an accepted step to the sums over the run; `units` are those of the encoders' inputs."""
        self.seconds += seconds
        counts = Counter({key: record[key] for key in (*COUNTED, *units)})
        counts.update({"samples": len(data.ids), "skipped": len(data.skipped)})
        corrupt = sum(s.category == "corrupt" for s in data.skipped)
        counts.update({"cut": data.cut, "corrupt": corrupt})
        counts.update(f"skipped {skipped.corpus}" for skipped in data.skipped)
        for key, value in counts.items():
            self.counters[key] = self.counters.get(key, 0) + value

    def accept(self, norm: float) -> None:
        """Record the gradient norm of an accepted step."""
        self.rejected_in_a_row = 0
        self.norms = [*self.norms, norm][-NORMS_KEPT:]

    def reject(self, data: StepRows, norm: float, stage: str) -> None:
        """Record a rejected step. Raises Diverged where there are too many."""
        self.rejected_steps += 1
        self.rejected_in_a_row += 1
        if self.rejected_steps > MAX_REJECTED or self.rejected_in_a_row >= MAX_REJECTED_IN_A_ROW:
            raise Diverged(
                f"{stage}: the gradient norm is {norm:.3g} at step {self.step}; {self.rejected_steps} steps were "
                f"rejected, {self.rejected_in_a_row} in a row; lower the learning rates of `trainable`, or look at the "
                f"samples: {_first_ids(data.ids)}"
            )

    def quarantine(self, ids: Sequence[str], stage: str) -> None:
        """Record samples that are excluded from training. Raises Diverged where there are too many."""
        self.quarantined = [*self.quarantined, *ids]
        if len(self.quarantined) > MAX_QUARANTINED:
            raise Diverged(
                f"{stage}: {quantity(len(self.quarantined), 'sample')} without a finite loss, so the weights or the "
                f"learning rates of `trainable` are the cause: {_first_ids(self.quarantined)}"
            )

    def evaluated(self, loss: float) -> bool:
        """Record the loss of an evaluation; returns whether it is the lowest one."""
        self.evaluated_step = self.step
        if not math.isfinite(loss) or (self.best_loss is not None and loss >= self.best_loss):
            self.evaluations_since_best += 1
            return False
        self.best_step, self.best_loss, self.evaluations_since_best = self.step, loss, 0
        return True

    def rolled_back(self, stored: "TrainState") -> "TrainState":
        """The state after a rollback to a checkpoint's state: the loader continues after this state's draws."""
        return dataclasses.replace(
            stored,
            draws=self.draws,
            corrupt=self.corrupt,
            quarantined=self.quarantined,
            rejected_steps=self.rejected_steps,
            rollbacks=self.rollbacks + 1,
        )

    def to_json(self) -> dict[str, Any]:
        """The state as `state.json` holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TrainState":
        """The state that `state.json` holds; fields that an earlier version didn't write have their defaults."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: stored[name] for name in names if name in stored})


def _first_ids(ids: Sequence[str]) -> str:
    """Text with the first sample ids and the number of the others."""
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return ", ".join(ids[:IDS_SHOWN]) + more


def checkpoint_tensors(
    trained: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name: trained parameters, their averages, those with the lowest evaluation loss,
    moments and step counts of the optimizer."""
    names = {id(p): name for name, p in trained.items()}
    return {
        **{f"parameter/{name}": p.detach() for name, p in trained.items()},
        **{f"average/{name}": average for name, average in averages.items()},
        **{f"best/{name}": tensor for name, tensor in best.items()},
        **{
            f"{key}/{names[id(p)]}": value
            for p, moments in optimizer.state.items()
            for key, value in moments.items()
        },
    }


def restore(
    stored: checkpoint.Stored,
    trained: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> TrainState:
    """Fill parameters, averages, best parameters and optimizer moments from a checkpoint, in place; returns its state.
    Parameters that no step has changed have no moments."""
    names, present = {id(p): name for name, p in trained.items()}, set(stored.names)
    optimizer.state.clear()
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        zeros = partial(torch.zeros_like, p, requires_grad=False)
        if f"step/{names[id(p)]}" in present:
            step = torch.zeros((), device=p.device)
            optimizer.state[p] = {"step": step, "exp_avg": zeros(), "exp_avg_sq": zeros()}
        elif f"momentum/{names[id(p)]}" in present:  # Muon's
            optimizer.state[p] = {"momentum": zeros()}
    with torch.no_grad():
        stored.read(checkpoint_tensors(trained, averages, best, optimizer))
    return TrainState.from_json(stored.state)
