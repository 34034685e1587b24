"""Non-finite losses and loss spikes: which samples are quarantined, which steps are rejected.

loss or gradient isn't finite  -> the loss of every sample of the step is computed alone; samples whose own loss isn't
                                  finite are quarantined for good (`quarantine.jsonl`), and the step is taken without
                                  them
no such sample, or a spike     -> the step is rejected: the weights stay as they are, and the next step is taken; or the
                                  run rolls back to its last checkpoint and continues with the samples that come next
too many of either             -> the run ends with `Diverged`, which names the samples (state.py)
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from polyphi.batch import Batch
from polyphi.data.loader import StepRows
from polyphi.runtime import distributed

MIN_NORMS = 10
"""Fewest earlier gradient norms that a spike is measured against."""


class Diverged(RuntimeError):
    """Losses or gradients aren't finite, or spike, again and again."""


@dataclass(frozen=True)
class StepGuard:
    """Rejects steps. A gradient norm of more than `spike` times the median of the latest norms is a loss spike (None:
    only a non-finite norm is rejected). After a rejected step, `then` skips it or rolls back to the last checkpoint."""

    spike: float | None = None
    then: Literal["skip", "roll-back"] = "skip"

    def rejects(self, norm: float, norms: Sequence[float]) -> bool:
        """Whether a step with the gradient norm `norm` is rejected, given the `norms` of the steps before it."""
        if not math.isfinite(norm):
            return True
        if self.spike is None or len(norms) < MIN_NORMS:
            return False
        return norm > self.spike * statistics.median(norms)


def nonfinite_samples(step: StepRows, loss_of: Callable[[list[Batch]], float]) -> list[str]:
    """Ids of the samples whose own loss isn't finite: each process computes its own samples, all return the same ids.
    Empty where all of several samples have such a loss: then the weights are the cause."""
    own = list(zip(step.own_ids(), step.samples, strict=True)) or [("", step.spare_rows())]
    names = []
    for at in range(max(len(own), *map(len, step.other_sizes()), 0)):
        # With sharded layers every forward is a collective: processes with fewer samples repeat their last one.
        name, rows = own[min(at, len(own) - 1)]
        if not math.isfinite(loss_of(rows)) and name:
            names.append(name)
    everyone = sorted({name for ids in distributed.all_gather(names) for name in ids})
    return [] if len(everyone) == len(step.ids) > 1 else everyone
