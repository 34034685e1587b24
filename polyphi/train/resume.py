"""What a run must have in common with the one it goes on from, and what it remembers of its past.

A stage that was stopped goes on from its latest checkpoint and ends with the numbers of one that never was: same
samples, same losses. It is refused where anything that decides them has changed.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from polyphi.data.loader import Loader, Step
from polyphi.runtime import distributed, precision
from polyphi.runtime.precision import Choice, Product
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
"""Key of the sentence that says why a run has its precision; it may differ between a run and its resumption."""
COUNTED = ("tokens", "supervised", "crops", "frames")


@dataclasses.dataclass
class Past:
    """What a run has behind it: steps, draws (and how many of them were damaged samples), seconds, counters (tokens,
    samples, crops ... and samples left out by corpus), its latest gradient norms, the samples that made a loss NaN,
    steps that weren't taken (in all, and just now in a row), and times it went back to a checkpoint."""

    step: int = 0
    draws: int = 0
    corrupt: int = 0
    seconds: float = 0.0
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    norms: list[float] = dataclasses.field(default_factory=list)
    set_aside: list[str] = dataclasses.field(default_factory=list)
    wrong_steps: int = 0
    wrong_in_a_row: int = 0
    rolled_back: int = 0

    def count(self, step: Step, record: Mapping[str, Any], seconds: float) -> None:
        """A step is done."""
        self.step += 1
        self.seconds += seconds
        self.draws, self.corrupt = step.draws, step.corrupt
        found = Counter({key: record[key] for key in COUNTED})
        found.update({"samples": len(step.ids), "skipped": len(step.skipped)})
        found.update({"cut": step.cut, "corrupt": sum(s.kind == "corrupt" for s in step.skipped)})
        found.update(f"skipped {skipped.corpus}" for skipped in step.skipped)
        for key, value in found.items():
            self.counters[key] = self.counters.get(key, 0) + value

    def tell_skipped(self, step: Step, tell: Callable[[str], None]) -> None:
        """The first sample of each corpus that is left out is worth a line."""
        for corpus, first in {s.corpus: s for s in reversed(step.skipped)}.items():
            if f"skipped {corpus}" not in self.counters:
                tell(f"  samples of {corpus} are left out, the first: {first}")


def identity(
    stage: Stage, budget: Budget, seed: int, precision: str, loader: Loader
) -> dict[str, Any]:
    """What must be equal for a run to be continued, as JSON gives it back."""
    value = {
        "stage": stage.name,
        "budget": dataclasses.asdict(budget),
        "seed": seed,
        "precision": precision,
        "learn": dict(stage.learn),
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
    }
    if stage.adapters:
        value["adapters"] = {name: repr(adapter) for name, adapter in stage.adapters.items()}
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


def recorded_precision(out: Path) -> Choice | None:
    """The precision of the stage that a folder holds, from its manifest or its latest readable checkpoint."""
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
    """The precision that a manifest or run.json holds."""
    if values.get("precision") not in precision.DTYPES:
        return None
    return Choice(values["precision"], values.get(REASON) or "as the run began")


def choose_precision(
    requested: str | Choice,
    out: Path,
    device: torch.device | str = "cpu",
    products: Callable[[], Sequence[Product]] = tuple,
    rows: int = precision.ROWS,
    revise: Callable[[Choice], Choice] = lambda choice: choice,
) -> Choice:
    """The precision of a stage: `requested` unless it is "auto", then that of the stage in `out`, then what this
    machine is fast in (runtime/precision.py), which `revise` may change. The first process decides for all; all
    processes call this together.

    Raises ValueError for a `requested` or a POLYPHI_PRECISION that is no precision.
    """
    if isinstance(requested, Choice):
        return requested
    if requested != "auto":
        return precision.choose(requested)
    precision.pinned()  # a wrong value is an error in every process, before they wait for each other
    choice = None
    if distributed.rank() == 0:
        choice = recorded_precision(out) or revise(
            precision.choose(requested, device, products(), rows)
        )
    shared = distributed.everyones(choice)[0]
    assert shared is not None
    return shared


def same_run(identity: Mapping[str, Any], before: Mapping[str, Any], out: Path) -> None:
    """Raise ValueError where a run differs from the one that `out` holds."""
    for key, value in identity.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} holds a run made with {key} {before.get(key)!r}, now it is {value!r}; "
                "use another folder, or remove that one to start the stage again"
            )


def must_continue(
    stored: checkpoint.Stored, out: Path, identity: Mapping[str, Any], frozen: Mapping[str, str]
) -> None:
    """Raise ValueError where a checkpoint isn't of this very run: another identity, other tensors that rest, or the
    same with other bits."""
    before = stored.state
    same_run(identity, before["identity"], out)
    names = {*frozen, *before["frozen"]}
    if changed := sorted(n for n in names if before["frozen"].get(n) != frozen.get(n)):
        raise ValueError(
            f"the checkpoint in {out} started from other weights: {len(changed)} of {len(names)} frozen tensors "
            f"differ, such as {', '.join(changed[:3])}; give it its parents back, or remove {out} to start again"
        )


def restore(
    stored: checkpoint.Stored,
    learned: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> Past:
    """Parameters, their averages and the optimiser's moments as a checkpoint has them, in place; what was behind it."""
    optimizer.state.clear()
    checkpoint.make_moments(optimizer, {id(p): name for name, p in learned.items()}, stored.names)
    with torch.no_grad():
        stored.read(tensors(learned, averages, optimizer))
    return Past(**{f.name: stored.state[f.name] for f in dataclasses.fields(Past)})


def tensors(
    learned: Mapping[str, Tensor], averages: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name."""
    names = {id(p): name for name, p in learned.items()}
    return {
        **{f"parameter/{name}": p.detach() for name, p in learned.items()},
        **{f"average/{name}": average for name, average in averages.items()},
        **checkpoint.optimiser_tensors(optimizer, names),
    }


def finished(
    out: Path, identity: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The manifest of a stage that is done; its tensors are put in place."""
    manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    same_run(identity, manifest, out)
    with torch.no_grad():
        for name, tensor in load_file(out / TRAINED).items():
            parameters[name].copy_(tensor)
    return manifest
