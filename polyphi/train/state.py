"""`TrainState`: how far a run is, saved in every checkpoint with weights, averages and optimizer moments."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyphi.data.loader import StepRows
from polyphi.train import checkpoint
from polyphi.train.guard import Diverged

COUNTED = ("tokens", "supervised", "crops", "frames")
"""Numbers of a step's record that are summed over the run."""
MAX_QUARANTINED = 20
"""Samples with a non-finite loss that a run tolerates; with more, the cause isn't the data."""
MAX_REJECTED, MAX_REJECTED_IN_A_ROW = 10, 3
"""Rejected steps that end a run: more than the first number in all, or the second in a row."""
NORMS_KEPT = 100
"""Latest gradient norms, against which a spike is measured (guard.py)."""
IDS_SHOWN = 20


@dataclasses.dataclass
class TrainState:
    """How far a run is.

    `step`: steps done. `draws`: samples drawn by the loader, of which `corrupt` were damaged. `seconds`: time in
    training. `counters`: sums over the run (tokens, samples, crops ..., samples skipped by corpus). `norms`: the latest
    gradient norms. `quarantined`: ids of samples with a non-finite loss. `rejected_steps` and `rejected_in_a_row`:
    steps whose update was rejected, in all and just now. `rollbacks`: times the run went back to a checkpoint.
    `evaluated_step`: the step of the last evaluation. `best_step` and `best_loss`: those of the evaluation with the
    lowest loss. `evaluations_since_best`: evaluations after it.
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

    def advance(self, data: StepRows) -> None:
        """Count a step, accepted or rejected: the loader continues after its draws."""
        self.step += 1
        self.draws, self.corrupt = data.draws, data.corrupt

    def count(self, data: StepRows, record: Mapping[str, Any], seconds: float) -> None:
        """Add an accepted step to the sums over the run."""
        self.seconds += seconds
        counts = Counter({key: record[key] for key in COUNTED})
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
                f"{stage}: {len(self.quarantined)} samples have a loss that isn't finite, so the weights or the "
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
        """The state that `state.json` holds."""
        return cls(**{f.name: stored[f.name] for f in dataclasses.fields(cls)})


def _first_ids(ids: Sequence[str]) -> str:
    """Text with the first ids and the number of the others."""
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return ", ".join(ids[:IDS_SHOWN]) + more


def checkpoint_tensors(
    trained: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name: trained parameters, their averages, those with the lowest evaluation loss,
    optimizer moments."""
    names = {id(p): name for name, p in trained.items()}
    return {
        **{f"parameter/{name}": p.detach() for name, p in trained.items()},
        **{f"average/{name}": average for name, average in averages.items()},
        **{f"best/{name}": tensor for name, tensor in best.items()},
        **checkpoint.optimiser_tensors(optimizer, names),
    }


def restore(
    stored: checkpoint.Stored,
    trained: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> TrainState:
    """Fill parameters, averages, best parameters and optimizer moments from a checkpoint, in place; returns its
    state."""
    optimizer.state.clear()
    checkpoint.make_moments(optimizer, {id(p): name for name, p in trained.items()}, stored.names)
    with torch.no_grad():
        stored.read(checkpoint_tensors(trained, averages, best, optimizer))
    return TrainState.from_json(stored.state)
