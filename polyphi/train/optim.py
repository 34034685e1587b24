"""AdamW, and Muon where a size asks for it, over the groups that a stage's `learn` names: each glob is a group with its
own peak rate."""

import re
from itertools import product

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from polyphi.train.muon import Muon, Together
from polyphi.train.stage import Budget, Stage, claim


def groups(stage: Stage, parameters: dict[str, Tensor]) -> dict[str, list[str]]:
    """Glob -> the parameters it claims (the longest matching glob wins). Raises ValueError if a glob matches
    nothing."""
    owner = claim({glob: glob for glob in stage.learn}, parameters)
    return {glob: [name for name in parameters if owner.get(name) == glob] for glob in stage.learn}


NO_LAYERS = re.compile(r"embed|\.(tokens|positions|probe|ctc|words|lora)\b")
"""Names of matrices that aren't those of layers: embeddings, queries, heads over a vocabulary, adapters."""


def optimiser(
    stage: Stage,
    parameters: dict[str, Tensor],
    budget: Budget,
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """AdamW with a group per glob and kind of tensor: matrices decay, vectors (norms, biases, separators) don't.
    `budget.rate` multiplies the peak rates of the stage. Where `budget.muon` isn't 0, it multiplies those of the
    layers' matrices, which are then trained by Muon, its products in this type. Raises ValueError where those are cut
    over processes."""
    made, muon = [], []
    for glob, names in groups(stage, parameters).items():
        for matrix, sharded in product(
            (True, False), repeat=2
        ):  # one fused call can't mix whole and sharded tensors
            chosen = [
                p
                for p in (parameters[n] for n in names)
                if (p.ndim > 1, isinstance(p, DTensor)) == (matrix, sharded)
            ]
            if matrix and budget.muon:
                if sharded and chosen:
                    raise ValueError("Muon needs whole matrices; train without --shard")
                layers = [
                    parameters[n]
                    for n in names
                    if parameters[n].ndim == 2 and not NO_LAYERS.search(n)
                ]
                chosen = [p for p in chosen if not any(p is q for q in layers)]
                if layers and not sharded:
                    peak = stage.learn[glob] * budget.muon
                    muon.append({"params": layers, "lr": 0.0, "peak": peak, "glob": glob})
            if chosen:
                decay = stage.weight_decay if matrix else 0.0
                made.append(
                    {
                        "params": chosen,
                        "lr": 0.0,
                        "peak": stage.learn[glob] * budget.rate,
                        "weight_decay": decay,
                        "glob": glob,
                    }
                )
    adamw = torch.optim.AdamW(made, betas=stage.betas, eps=1e-8, fused=True) if made else None
    if not muon:
        assert adamw is not None, f"{stage.name} trains nothing"
        return adamw
    by_muon = Muon(muon, dtype=products)
    return Together(by_muon, adamw) if adamw else by_muon


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Every group's rate as a share of its peak; returns the largest."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimiser.param_groups)
