"""AdamW, and Muon where a size sets it, over the groups of a stage's `trainable`: each glob has a peak learning rate.

Muon (Jordan et al., 2024; the optimizer of nanochat) is momentum, made orthogonal, as the update of a matrix [ours]::

    update = momentum of the gradient (Nesterov)                 [r c]
    update = U V' of its singular value decomposition U S V'     nearly, by five Newton-Schulz steps
    matrix = matrix - lr sqrt(max(1, r / c)) update

A step has the same size in all directions of a matrix, whereas AdamW's is largest in those that dominate the gradient.
A language model of nano size learns to copy, sort and count in a quarter of the tokens (LOG.md).

`torch.optim.Muon` does the same in bfloat16, one matrix at a time. Here matrices of equal shape are multiplied in one
batch, in bfloat16 where the training has that precision, else in float32: CPUs without bfloat16 products take eight
times as long for them. Of sharded matrices (FSDP2) each process of the group gathers its share, whole, and sends the
rows of their updates back.

Default learning rates of adapters, by rank, for globs of `trainable` with "auto" in place of a number::

    rank     8      16      32      64     256     320
    rate   5e-4   4.5e-4  3.2e-4  2.2e-4  1.1e-4  1e-4
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from polyphi.model.config import AdapterConfig
from polyphi.train.parallel import local
from polyphi.train.stage import Budget, Stage, claim

REPORT_RATE, REPORT_RANK = 1e-4, 320
"""The report trains its speech adapter, of rank 320, at this rate (2.2.2); it gives none for vision."""
MAX_RATE = 5e-4
AUTO = "auto"
NOT_LAYERS = re.compile(r"embed|\.(tokens|positions|probe|ctc|words|cells|lora)\b")
"""Matches the names of matrices that are no weights of layers: embeddings, queries, heads over a vocabulary, LoRA."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of x -> a x + b x^3 + c x^5, which brings singular values between 0 and 1 close to 1."""
NEWTON_SCHULZ_STEPS = 5


def groups(stage: Stage, parameters: dict[str, Tensor]) -> dict[str, list[str]]:
    """The parameters of each glob; where several match, the longest glob counts. Raises ValueError if a glob matches
    nothing."""
    owner = claim({glob: glob for glob in stage.trainable}, parameters)
    return {
        glob: [name for name in parameters if owner.get(name) == glob] for glob in stage.trainable
    }


def is_layer(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight matrix of a layer, which Muon can train."""
    return parameter.ndim == 2 and not NOT_LAYERS.search(name)


def make_optimizer(
    stage: Stage,
    parameters: dict[str, Tensor],
    budget: Budget,
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """AdamW with a group per glob and tensor type: matrices have weight decay, vectors (norms, biases, separators) have
    none. `budget.lr_factor` multiplies the stage's peak learning rates. Where `budget.muon_lr_factor` isn't 0, Muon
    trains the matrices of layers, with that factor and products of the dtype `products`."""
    adamw_groups, muon_groups = [], []
    for glob, names in groups(stage, parameters).items():
        layers = [n for n in names if budget.muon_lr_factor and is_layer(n, parameters[n])]
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


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `factor` times its peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def orthogonal(
    matrices: Float[Tensor, "n r c"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n r c"]:
    """Each matrix with all singular values brought to about 1 (0.7 to 1.2), multiplied in `dtype`."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


def orthogonal_shards(
    shards: Float[Tensor, "n r_here c"],
    rows: int,
    group: ProcessGroup,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n r_here c"]:
    """`orthogonal` of matrices with `rows` rows that are sharded by rows over the processes of a group, in torch's
    chunks. Each process multiplies about n / processes of them."""
    columns, chunk = shards.shape[2], -(-rows // group.size())
    sizes = [min(chunk, max(0, rows - chunk * i)) for i in range(group.size())]
    counts = [len(part) for part in torch.arange(len(shards)).tensor_split(group.size())]
    own = counts[group.rank()]
    here = [count * shards.shape[1] * columns for count in counts]
    elsewhere = [own * size * columns for size in sizes]
    gathered = shards.new_empty(sum(elsewhere))
    distributed.all_to_all_single(gathered, shards.flatten(), elsewhere, here, group)
    parts = zip(gathered.split(elsewhere), sizes, strict=True)
    whole = torch.cat([part.view(own, size, columns) for part, size in parts], 1)
    updates = [part.flatten() for part in orthogonal(whole, dtype).split(sizes, 1)]
    result = torch.empty_like(shards)
    distributed.all_to_all_single(result.view(-1), torch.cat(updates), here, elsewhere, group)
    return result


class Muon(torch.optim.Optimizer):
    """Muon for matrices, whole or sharded by rows; each group has a `lr`. `dtype` is that of the products."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike: defaultdict[tuple[torch.Size, DeviceMesh | None], list[Tensor]]
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, p.device_mesh if isinstance(p, DTensor) else None].append(p)
            for ((rows, columns), mesh), matrices in alike.items():
                gradients = [local(p.grad) for p in matrices if p.grad is not None]
                momenta = [local(self._momentum(p)) for p in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                if mesh is None:
                    updates = orthogonal(nesterov, self._dtype)
                else:
                    shards = mesh.get_group(mesh.ndim - 1)
                    updates = orthogonal_shards(nesterov, rows, shards, self._dtype)
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_add_([local(p) for p in matrices], list(updates), alpha=-lr)

    def _momentum(self, p: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, requires_grad=False)
        return state["momentum"]


class CombinedOptimizer(torch.optim.Optimizer):
    """Two optimizers with a shared state and the groups of both."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._parts = first, second
        first.state = second.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of both optimizers."""
        for part in self._parts:
            part.step(closure)


def default_lr(rank: int) -> float:
    """The default peak learning rate of an adapter. It falls with the square root of the rank: a step of AdamW changes
    each entry of A and B by about the rate, and a product of these has `rank` such terms."""
    rate = min(MAX_RATE, REPORT_RATE * math.sqrt(REPORT_RANK / rank))
    return float(f"{rate:.1e}")


def with_default_lrs(stage: Stage, adapters: Mapping[str, AdapterConfig]) -> Stage:
    """The stage with the default rate in place of each "auto". Raises ValueError for an "auto" that isn't for one of
    the model's adapters."""
    rates: dict[str, float] = {}
    for glob, rate in stage.trainable.items():
        if isinstance(rate, str):
            match = re.search(r"\.lora\.([\w-]+)\.", glob)
            if rate != AUTO or match is None or match[1] not in adapters:
                raise ValueError(
                    f"{stage.name}: expected a learning rate for {glob!r}, found {rate!r}; 'auto' is for the adapters "
                    f"of the model ({', '.join(adapters) or 'it has none'}), such as 'decoder.*.lora.NAME.*'"
                )
            rate = default_lr(adapters[match[1]].rank)
        rates[glob] = rate
    return replace(stage, trainable=rates)
