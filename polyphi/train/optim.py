"""AdamW over the groups that a stage's `learn` names: each glob is a group with its own peak rate."""

from itertools import product

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from polyphi.train.stage import Stage, claim


def groups(stage: Stage, parameters: dict[str, Tensor]) -> dict[str, list[str]]:
    """Glob -> the parameters it claims (the longest matching glob wins). Raises ValueError if a glob matches
    nothing."""
    owner = claim({glob: glob for glob in stage.learn}, parameters)
    return {glob: [name for name in parameters if owner.get(name) == glob] for glob in stage.learn}


def optimiser(stage: Stage, parameters: dict[str, Tensor], rate: float) -> torch.optim.AdamW:
    """AdamW with a group per glob and kind of tensor: matrices decay, vectors (norms, biases, separators) don't.
    `rate` multiplies the peak rates of the stage."""
    made = []
    for glob, names in groups(stage, parameters).items():
        for matrix, sharded in product(
            (True, False), repeat=2
        ):  # one fused call can't mix whole and sharded tensors
            chosen = [
                p
                for p in (parameters[n] for n in names)
                if (p.ndim > 1, isinstance(p, DTensor)) == (matrix, sharded)
            ]
            if chosen:
                decay = stage.weight_decay if matrix else 0.0
                made.append(
                    {
                        "params": chosen,
                        "lr": 0.0,
                        "peak": stage.learn[glob] * rate,
                        "weight_decay": decay,
                        "glob": glob,
                    }
                )
    return torch.optim.AdamW(made, betas=stage.betas, eps=1e-8, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Every group's rate as a share of its peak; returns the largest."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimiser.param_groups)
