"""Linear layers with weights of bfloat16 and sums of float32 (half.cpp).

>>> linear(x, weight, bias)                                  # [T I] by [O I] -> [T O]
>>> add(y, linear(x, a), b, scale=2.0)                       # y + 2 B A x, in place

One token is read at the rate of memory, which torch's kernels miss. Many tokens are faster than torch's only on a CPU
without bfloat16 instructions (`needed`): torch multiplies there at a tenth of the rate of float32.
"""

from collections.abc import Callable
from ctypes import c_float
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.native import count, fits, function, number, pointer, pool


@cache
def needed() -> bool:
    """Whether torch has no fast products of bfloat16 on this CPU: oneDNN has them from AVX-512 on, and where an Arm CPU
    has bfloat16 instructions."""
    there = torch.backends.mkldnn.is_available()
    return not (there and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def takes(x: Float[Tensor, "*T I"], weight: Float[Tensor, "O I"]) -> bool:
    """Whether `linear` is correct and faster than torch here: x and weight in bfloat16 without gradients, and a single
    token or a CPU that needs it."""
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and fits(x, weight)
        and (x.numel() == x.shape[-1] or needed())
    )


def linear(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None = None,
    *,
    isa: int = -1,
) -> Float[Tensor, "T O"]:
    """x, in float32 or bfloat16, by a weight and a bias in bfloat16; in the dtype of x, rounded once. `isa` is for
    tests: an index in `native.PATHS`. Raises ValueError for other dtypes and shapes that don't fit."""
    y = torch.empty(len(x), len(weight), dtype=x.dtype)
    _run(x, weight, bias, y, 0.0, 1.0, isa)
    return y


def add(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    *,
    scale: float,
    isa: int = -1,
) -> Float[Tensor, "T O"]:
    """y, in the dtype of x, with `scale` times their product added in place and rounded once."""
    if y.dtype != x.dtype or not y.is_contiguous():
        raise ValueError(f"expected a contiguous sum in {x.dtype}, found {y.dtype}")
    _run(x, weight, None, y, 1.0, scale, isa)
    return y


@cache
def _half() -> Callable[..., None]:
    head = (number, *[pointer] * 4, number, c_float, c_float)
    return function("polyphi_half", *head, *[count] * 3, pointer, number)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    keep: float,
    scale: float,
    isa: int,
) -> None:
    x, weight = x.contiguous(), weight.contiguous()
    outputs, inputs = weight.shape
    if weight.dtype != torch.bfloat16 or x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"expected a weight in bfloat16 and tokens in it or float32, found {weight.dtype} and {x.dtype}"
        )
    if x.shape[1:] != (inputs,) or y.shape != (len(x), outputs):
        raise ValueError(
            f"expected tokens of [T {inputs}] and sums of [T {outputs}], found "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.bfloat16):
        raise ValueError(
            f"expected a bias of [{outputs}] in bfloat16, found {tuple(bias.shape)} in {bias.dtype}"
        )
    bias = None if bias is None else bias.contiguous()
    if not len(x):
        return
    _half()(
        isa,
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        int(x.dtype == torch.bfloat16),
        keep,
        scale,
        len(x),
        outputs,
        inputs,
        pool(),
        torch.get_num_threads(),
    )
