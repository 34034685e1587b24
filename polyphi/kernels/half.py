"""One token by weights of bfloat16 (half.cpp), read at the rate that memory gives, which no other kernel does.

>>> linear(x, weight)                                        # [1 I] by [O I] -> [1 O]
>>> add(y, linear(x, a), b, scale=2.0)                       # y + 2 B A x, in place
"""

from collections.abc import Callable
from ctypes import c_float
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool


def linear(
    x: Float[Tensor, "1 I"], weight: Float[Tensor, "O I"], *, isa: int = -1
) -> Float[Tensor, "1 O"]:
    """x, in float32 or bfloat16, by a weight in bfloat16; in the type of x, rounded once. `isa` is for tests: a place
    in `native.PATHS`."""
    y = torch.empty(1, len(weight), dtype=x.dtype)
    _run(x, weight, y, 0.0, 1.0, isa)
    return y


def add(
    y: Float[Tensor, "1 O"],
    x: Float[Tensor, "1 I"],
    weight: Float[Tensor, "O I"],
    *,
    scale: float,
    isa: int = -1,
) -> Float[Tensor, "1 O"]:
    """y, in the type of x, with `scale` times their product added in place and rounded once."""
    if y.dtype != x.dtype or not y.is_contiguous():
        raise ValueError(f"expected a contiguous sum in {x.dtype}, found {y.dtype}")
    _run(x, weight, y, 1.0, scale, isa)
    return y


@cache
def _half() -> Callable[..., None]:
    head = (number, *[pointer] * 3, number, c_float, c_float)
    return function("polyphi_half", *head, count, count, pointer, number)


def _run(x: Tensor, weight: Tensor, y: Tensor, keep: float, scale: float, isa: int) -> None:
    x, weight = x.contiguous(), weight.contiguous()
    outputs, inputs = weight.shape
    if weight.dtype != torch.bfloat16 or x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"expected a weight in bfloat16 and a token in it or float32, found {weight.dtype} and {x.dtype}"
        )
    if x.shape != (1, inputs) or y.shape != (1, outputs):
        raise ValueError(
            f"expected a token of [1 {inputs}] and sums of [1 {outputs}], found "
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
        outputs,
        inputs,
        pool(),
        torch.get_num_threads(),
    )
