"""Linear layers with weights of bfloat16 for few tokens (half.cpp): they read weights at the rate that memory gives,
which a matrix product's kernel doesn't.

>>> linear(x, weight)                                        # [T I] by [O I] -> [T O]
>>> add(y, linear(x, a), b, scale=2.0)                       # y + 2 B A x, in place
"""

from collections.abc import Callable
from ctypes import c_float
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool

FEW = 8
"""Tokens for which it pays."""


def linear(
    x: Float[Tensor, "T I"], weight: Float[Tensor, "O I"], *, isa: int = -1
) -> Float[Tensor, "T O"]:
    """x, in float32 or bfloat16, by a weight in bfloat16; in the type of x, rounded once. `isa` is for tests: a place
    in `native.PATHS`."""
    y = torch.empty(len(x), len(weight), dtype=x.dtype)
    _run(x, weight, y, 0.0, 1.0, isa)
    return y


def add(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    *,
    scale: float,
    isa: int = -1,
) -> Float[Tensor, "T O"]:
    """y, in the type of x, with `scale` times their product added in place and rounded once."""
    if y.dtype != x.dtype or not y.is_contiguous():
        raise ValueError(f"expected a contiguous sum in {x.dtype}, found {y.dtype}")
    _run(x, weight, y, 1.0, scale, isa)
    return y


@cache
def _half() -> Callable[..., None]:
    head = (number, *[pointer] * 3, number, c_float, c_float)
    return function("polyphi_half", *head, *[count] * 3, pointer, number)


def _run(x: Tensor, weight: Tensor, y: Tensor, keep: float, scale: float, isa: int) -> None:
    x, weight = x.contiguous(), weight.contiguous()
    (tokens, inputs), outputs = x.shape, len(weight)
    if weight.dtype != torch.bfloat16 or x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"expected a weight in bfloat16 and tokens in it or float32, found {weight.dtype} and {x.dtype}"
        )
    if weight.shape[1] != inputs or y.shape != (tokens, outputs):
        raise ValueError(
            f"expected tokens of {weight.shape[1]} inputs and sums of [{tokens} {outputs}], found "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    _half()(
        isa,
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        int(x.dtype == torch.bfloat16),
        keep,
        scale,
        tokens,
        outputs,
        inputs,
        pool(),
        torch.get_num_threads(),
    )
