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


NO_LAYERS = re.compile(r"embed|\.(tokens|positions|probe|ctc|words|cells|lora)\b")
"""Names of matrices that aren't those of layers: embeddings, queries, heads over a vocabulary, adapters."""


def is_layer(name: str, parameter: Tensor) -> bool:
    """Whether it is the matrix of a layer, which Muon may train."""
    return parameter.ndim == 2 and not NO_LAYERS.search(name)


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
        layers = [n for n in names if budget.muon and is_layer(n, parameters[n])]
        if any(isinstance(parameters[n], DTensor) for n in layers):
            raise ValueError("Muon needs whole matrices, found some cut; train without --shard")
        if layers:
            peak = stage.learn[glob] * budget.muon
            by_muon = [parameters[n] for n in layers]
            muon.append({"params": by_muon, "lr": 0.0, "peak": peak, "glob": glob})
        others = [parameters[n] for n in names if n not in layers]
        for matrix, sharded in product(
            (True, False), repeat=2
        ):  # one fused call can't mix whole and sharded tensors
            chosen = [
                p for p in others if (p.ndim > 1, isinstance(p, DTensor)) == (matrix, sharded)
            ]
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
    layers_only = Muon(muon, dtype=products)
    return Together(layers_only, adamw) if adamw else layers_only


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Every group's rate as a share of its peak; returns the largest."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimiser.param_groups)
