"""The rotation of blocks of 64 inputs by a Hadamard matrix: the product of rotated activations and a rotated weight is
that of both as they were, but an activation a thousand times as large as the others is spread over its block, so that 8
bits express the others too (QuaRot, arXiv 2404.00456, block by block).

>>> torch.allclose(rotated(x) @ rotated(w).T, x @ w.T)
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.native import count, fits, function, number, pointer, pool

BLOCK = 64
"""Inputs that are rotated together. Wider blocks spread no better (docs/numbers.md)."""


@cache
def _rotate() -> Callable[..., None]:
    sizes = [count] * 2
    return function("polyphi_rotate", number, pointer, number, pointer, *sizes, pointer, number)


@torch.no_grad()
def rotated(x: Float[Tensor, "n I"], isa: int = -1) -> Float[Tensor, "n I_up"]:
    """x, padded to whole blocks and rotated, in float32. The same on every path and device, to the bit. `isa` is for
    tests: an index in `native.PATHS`."""
    (rows, inputs), width = x.shape, -(-x.shape[1] // BLOCK) * BLOCK
    if not fits(x):
        return rotated_back(F.pad(x.float(), (0, width - inputs)))
    x, y = x.contiguous(), torch.empty(rows, width)
    bf16 = int(x.dtype == torch.bfloat16)
    addresses = x.data_ptr(), bf16, y.data_ptr()
    _rotate()(isa, *addresses, rows, inputs, pool(), torch.get_num_threads())
    return y


def rotated_by_product(x: Float[Tensor, "n I"]) -> Float[Tensor, "n I_up"]:
    """`rotated` as one product, in the dtype of x: for activations and gradients where our kernel doesn't run. Its sums
    may be in another order."""
    blocks = F.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    return (blocks @ _matrix(x.device, x.dtype)).flatten(1)


@cache
def _matrix(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "BLOCK BLOCK"]:
    return rotated(torch.eye(BLOCK)).to(device, dtype)


def rotated_back(x: Float[Tensor, "n I_up"]) -> Float[Tensor, "n I_up"]:
    """The inverse of `rotated`, with its padding: the matrix is its own inverse."""
    shape, step = x.shape, 1
    while step < BLOCK:
        one, other = x.reshape(-1, BLOCK // (2 * step), 2, step).unbind(2)
        x = torch.stack([one + other, one - other], 2)
        step *= 2
    return x.reshape(shape) / 8
