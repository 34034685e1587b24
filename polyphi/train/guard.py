"""Non-finite losses and loss spikes: which samples are quarantined, which steps are rejected.

loss or gradient isn't finite  -> the loss of every sample of the step is computed alone; samples whose own loss isn't
                                  finite are quarantined for good (`quarantine.jsonl`), and the step is taken without
                                  them
no such sample, or a spike     -> the step is rejected: the weights stay as they are, and the next step is taken; or the
                                  run rolls back to its last checkpoint and continues with the samples that come next
too many of either             -> the run ends with `Diverged`, which names the samples (state.py)
"""

import math
from collections.abc import Callable

from polyphi.batch import Batch
from polyphi.data.loader import StepRows
from polyphi.runtime import distributed


class Diverged(RuntimeError):
    """Losses or gradients aren't finite, or spike, again and again."""


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
