"""Linear layers with weights of 4 bits (linear.cpp).

>>> linear(x, pack(q, scale, zero), outputs)               # [T I] by [O I] -> [T O]
"""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool

GROUP = 32
"""Inputs that share a scale and a zero."""
PANEL = 16
"""Outputs side by side: a weight has a multiple of so many."""


@cache
def _quantise() -> Callable[..., None]:
    return function("polyphi_quantise", pointer, number, count, count, *[pointer] * 4)


@cache
def _pack() -> Callable[..., None]:
    return function("polyphi_pack", *[pointer] * 3, count, count, pointer)


@cache
def _linear() -> Callable[..., None]:
    sizes = (*[count] * 3, pointer, number)
    return function("polyphi_linear", number, *[pointer] * 6, number, *sizes)


def pack(
    q: UInt8[Tensor, "O I"], scale: Float[Tensor, "O G"], zero: Float[Tensor, "O G"]
) -> UInt8[Tensor, " bytes"]:
    """Weights (q - 8) * scale + zero, q from 0 to 15, as the kernels read them: 5 bits each. Raises ValueError for
    shapes that don't fit."""
    outputs, inputs = q.shape
    if outputs % PANEL or inputs % GROUP or scale.shape != (outputs, inputs // GROUP):
        raise ValueError(
            f"expected multiples of {PANEL} outputs and {GROUP} inputs and a scale for each {GROUP} inputs, found "
            f"{tuple(q.shape)} and {tuple(scale.shape)}"
        )
    packed = torch.empty(outputs * inputs * 5 // 8, dtype=torch.uint8)
    q, pairs = q.contiguous(), [t.to(torch.bfloat16).contiguous() for t in (scale, zero)]
    _pack()(q.data_ptr(), *(t.data_ptr() for t in pairs), outputs, inputs, packed.data_ptr())
    return packed


def linear(
    x: Float[Tensor, "T I"], packed: UInt8[Tensor, " bytes"], outputs: int, isa: int = -1
) -> Float[Tensor, "T O"]:
    """x, in float32 or bfloat16, by packed weights; in the type of x. Each token's activations are rounded to 8 bits of
    its largest, so that it is the same whatever stands beside it. `isa` is for tests: a place in `PATHS`."""
    x = x.contiguous()
    (tokens, inputs), half = x.shape, int(x.dtype == torch.bfloat16)
    q = torch.empty(tokens, inputs, dtype=torch.int8)
    scale = torch.empty(tokens)
    start = torch.empty(tokens, inputs // GROUP, dtype=torch.int32)
    total = torch.empty(tokens, inputs // GROUP)
    given = [t.data_ptr() for t in (q, scale, start, total)]
    _quantise()(x.data_ptr(), half, tokens, inputs, *given)
    y = torch.empty(tokens, outputs, dtype=x.dtype)
    _linear()(
        isa,
        *given,
        packed.data_ptr(),
        y.data_ptr(),
        half,
        tokens,
        outputs,
        inputs,
        pool(),
        torch.get_num_threads(),
    )
    return y
