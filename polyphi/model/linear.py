"""Linear layers: torch's, or our kernels where these are faster and no gradient is needed.

>>> product(x, weight, bias)                                 # [*T I] by [O I] -> [*T O]

On a CPU without bfloat16 instructions torch multiplies bfloat16 at a tenth of its float32 rate; our kernel reads the
same weights and multiplies in float32 (kernels/bf16.py).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyphi import kernels
from polyphi.kernels import bf16


def product(
    x: Float[Tensor, "*T I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*T O"]:
    """W x + bias."""
    if bf16.supports(x, weight):
        y = bf16.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return y.view(*x.shape[:-1], len(weight))
    if bias is None and _one_row(x, weight) and kernels.missing() is not None:
        return torch.mv(weight, x.reshape(-1)).view(*x.shape[:-1], len(weight))
    return F.linear(x, weight, bias)


def _one_row(x: Tensor, weight: Tensor) -> bool:
    """Whether x is a single row in bfloat16 on a CPU, without gradients. A matrix product reads its weights at a part
    of the memory's bandwidth, a matrix-vector product at all of it."""
    bf16_cpu = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu"
    return bf16_cpu and x.numel() == x.shape[-1] and not torch.is_grad_enabled()


class Linear(nn.Linear):
    """`nn.Linear` computed by `product`."""

    def forward(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        return product(x, self.weight, self.bias)
