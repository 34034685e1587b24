"""Muon: momentum, made orthogonal, as the update of a matrix (Jordan et al., 2024; the optimizer of nanochat). [ours]

    update = momentum of the gradient (Nesterov)                 [r c]
    update = U V' of its singular value decomposition U S V'     nearly, by five Newton-Schulz steps
    matrix = matrix - lr sqrt(max(1, r / c)) update

A step has the same size in all directions of a matrix, whereas AdamW's is largest in those that dominate the gradient.
A language model of nano size learns to copy, sort and count in a quarter of the tokens (LOG.md).

`torch.optim.Muon` does the same in bfloat16, one matrix at a time. Here matrices of equal shape are multiplied in one
batch, in bfloat16 where the training has that precision, else in float32: CPUs without bfloat16 products take eight
times as long for them.
"""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of x -> a x + b x^3 + c x^5, which brings singular values between 0 and 1 close to 1."""
STEPS = 5


def orthogonal(
    matrices: Float[Tensor, "n r c"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n r c"]:
    """Each matrix with all singular values brought to about 1 (0.7 to 1.2), multiplied in `dtype`."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(STEPS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices; each group has a `lr`. `dtype` is that of the products."""

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
            by_shape: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append((p, p.grad))
            for (rows, columns), pairs in by_shape.items():
                matrices, gradients = map(list, zip(*pairs, strict=True))
                momenta = [self._momentum(p) for p in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_add_(matrices, list(orthogonal(nesterov, self._dtype)), alpha=-lr)

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
        """Take a step of both."""
        for part in self._parts:
            part.step(closure)
