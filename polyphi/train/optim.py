"""AdamW, and Muon where a size sets it, over the groups of a stage's `trainable`: each glob has a peak learning
rate."""

import re
from itertools import product

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from polyphi.train.muon import CombinedOptimizer, Muon
from polyphi.train.stage import Budget, Stage, claim


def groups(stage: Stage, parameters: dict[str, Tensor]) -> dict[str, list[str]]:
    """The parameters of each glob; where several match, the longest glob counts. Raises ValueError if a glob matches
    nothing."""
    owner = claim({glob: glob for glob in stage.trainable}, parameters)
    return {
        glob: [name for name in parameters if owner.get(name) == glob] for glob in stage.trainable
    }


NOT_LAYERS = re.compile(r"embed|\.(tokens|positions|probe|ctc|words|cells|lora)\b")
"""Matches the names of matrices that are no weights of layers: embeddings, queries, heads over a vocabulary, LoRA."""


def is_layer(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight matrix of a layer, which Muon can train."""
    return parameter.ndim == 2 and not NOT_LAYERS.search(name)


def optimiser(
    stage: Stage,
    parameters: dict[str, Tensor],
    budget: Budget,
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """AdamW with a group per glob and tensor type: matrices have weight decay, vectors (norms, biases, separators) have
    none. `budget.lr_factor` multiplies the stage's peak learning rates. Where `budget.muon_lr_factor` isn't 0, Muon
    trains the matrices of layers, with that factor and products of the dtype `products`. Raises ValueError where Muon's
    matrices are sharded."""
    adamw_groups, muon_groups = [], []
    for glob, names in groups(stage, parameters).items():
        layers = [n for n in names if budget.muon_lr_factor and is_layer(n, parameters[n])]
        if any(isinstance(parameters[n], DTensor) for n in layers):
            raise ValueError("Muon needs whole matrices, found sharded ones; train without --fsdp")
        if layers:
            peak = stage.trainable[glob] * budget.muon_lr_factor
            by_muon = [parameters[n] for n in layers]
            muon_groups.append({"params": by_muon, "lr": 0.0, "peak": peak, "glob": glob})
        others = [parameters[n] for n in names if n not in layers]
        for matrix, sharded in product(
            (True, False), repeat=2
        ):  # one fused call can't mix whole and sharded tensors
            chosen = [
                p for p in others if (p.ndim > 1, isinstance(p, DTensor)) == (matrix, sharded)
            ]
            if chosen:
                decay = stage.weight_decay if matrix else 0.0
                adamw_groups.append(
                    {
                        "params": chosen,
                        "lr": 0.0,
                        "peak": stage.trainable[glob] * budget.lr_factor,
                        "weight_decay": decay,
                        "glob": glob,
                    }
                )
    adamw = (
        torch.optim.AdamW(adamw_groups, betas=stage.betas, eps=1e-8, fused=True)
        if adamw_groups
        else None
    )
    if not muon_groups:
        assert adamw is not None, f"{stage.name} trains nothing"
        return adamw
    layers_only = Muon(muon_groups, dtype=products)
    return CombinedOptimizer(layers_only, adamw) if adamw else layers_only


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `factor` times its peak; returns the largest."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimiser.param_groups)
