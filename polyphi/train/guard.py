"""When a step goes wrong.

the loss or the gradient isn't finite -> every sample of the step is tried alone; those whose own loss isn't finite
                                         are set aside for good, named in `quarantine.jsonl`, and the step is
                                         made without them
nobody is to blame, or a spike        -> the weights stay as they are, and the next step is tried; or the run goes
                                         back to its last checkpoint, and on with the samples that come next
too often                             -> the run ends and names the samples
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from polyphi.batch import Batch
from polyphi.data.loader import Step
from polyphi.runtime import distributed
from polyphi.train.resume import Past

MOST_SET_ASIDE = 20
"""Samples whose loss isn't finite before a run ends: so many are no accident."""
MOST_WRONG_STEPS, MOST_IN_A_ROW = 10, 3
"""Steps that aren't taken before a run ends: in all, and one after the other."""
NORMS_KEPT, FEWEST_NORMS = 100, 10
"""Gradient norms that a spike is measured against, and how few are too few to tell."""
SHOWN = 20


class Diverged(RuntimeError):
    """Losses or gradients go wrong again and again."""


@dataclass(frozen=True)
class Guard:
    """A gradient norm `spike` times the median of the last hundred counts as wrong (None: only what isn't finite
    does). `then` says what a step does that went wrong and that no sample is to blame for."""

    spike: float | None = None
    then: Literal["skip", "roll-back"] = "skip"

    def is_wrong(self, norm: float, past: Past) -> bool:
        """Whether a step with this gradient norm must not be taken."""
        if not math.isfinite(norm):
            return True
        if self.spike is None or len(past.norms) < FEWEST_NORMS:
            return False
        return norm > self.spike * statistics.median(past.norms)


def remember(past: Past, norm: float) -> None:
    """The norm of a step that was taken."""
    past.wrong_in_a_row = 0
    past.norms = [*past.norms, norm][-NORMS_KEPT:]


def blame(step: Step, loss_of: Callable[[list[Batch]], float]) -> list[str]:
    """Ids of the samples whose own loss isn't finite: each process tries its own, all get the same answer. Nobody
    where all of several samples are: then it is the weights."""
    mine = list(zip(step.own_ids(), step.samples, strict=True)) or [("", step.spare())]
    guilty = []
    for at in range(max(len(mine), *map(len, step.others()), 0)):
        # Where there are shards, all processes must meet in every forward: those with fewer try a sample once more.
        name, rows = mine[min(at, len(mine) - 1)]
        if not math.isfinite(loss_of(rows)) and name:
            guilty.append(name)
    found = sorted({name for names in distributed.everyones(guilty) for name in names})
    return [] if len(found) == len(step.ids) > 1 else found


def set_aside(past: Past, ids: Sequence[str], stage: str) -> None:
    """Never draw these samples again. Raises Diverged where there are too many."""
    past.set_aside = [*past.set_aside, *ids]
    if len(past.set_aside) > MOST_SET_ASIDE:
        raise Diverged(
            f"{stage}: {len(past.set_aside)} samples have a loss that isn't finite, so the weights or the rates of "
            f"`learn` are to blame rather than they: {few(past.set_aside)}"
        )


def wrong_step(past: Past, step: Step, norm: float, stage: str) -> None:
    """Count a step that isn't taken. Raises Diverged where there are too many."""
    past.wrong_steps += 1
    past.wrong_in_a_row += 1
    if past.wrong_steps > MOST_WRONG_STEPS or past.wrong_in_a_row >= MOST_IN_A_ROW:
        raise Diverged(
            f"{stage}: the gradient norm is {norm:.3g} at step {past.step}; {past.wrong_steps} steps went wrong, "
            f"{past.wrong_in_a_row} in a row; lower the rates of `learn`, or look at the samples: {few(step.ids)}"
        )


def few(ids: Sequence[str]) -> str:
    """Some ids in words."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more
