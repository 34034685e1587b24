"""AdamW over the groups that a stage's `learn` names: each glob is a group with its own peak rate."""

import torch
from torch import Tensor

from polyphi.train.stage import Stage, claim


def groups(stage: Stage, parameters: dict[str, Tensor]) -> dict[str, list[str]]:
    """Glob -> the parameters it claims (the longest matching glob wins). Raises ValueError if a glob matches nothing."""
    owner = claim({glob: glob for glob in stage.learn}, parameters)
    return {glob: [name for name in parameters if owner.get(name) == glob] for glob in stage.learn}


def optimiser(stage: Stage, parameters: dict[str, Tensor], rate: float) -> torch.optim.AdamW:
    """AdamW with a group per glob and kind of tensor: matrices decay, vectors (norms, biases, separators) don't."""
    made = []
    for glob, names in groups(stage, parameters).items():
        for decays in (True, False):
            chosen = [parameters[n] for n in names if (parameters[n].ndim > 1) == decays]
            if chosen:
                decay = stage.weight_decay if decays else 0.0
                made.append({"params": chosen, "lr": 0.0, "peak": stage.learn[glob] * rate, "weight_decay": decay, "glob": glob})
    return torch.optim.AdamW(made, betas=stage.betas, eps=1e-8, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate as a share of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
