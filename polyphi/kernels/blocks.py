"""What stands between the products of a decoder's block (blocks.cpp): norm, gate, rotary positions.

Inputs are float32 or bfloat16, all of one type; `isa` is for tests: a place in `PATHS`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.native import count, function, number, pointer, pool, real


@cache
def _function(name: str, *arguments: Any) -> Callable[..., None]:
    return function(name, number, number, *arguments, pointer, number)


def rms_norm(
    x: Float[Tensor, "T D"], weight: Float[Tensor, " D"], eps: float, isa: int = -1
) -> Float[Tensor, "T D"]:
    """x by its root mean square, rounded to its type, times the weight."""
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    run = _function("polyphi_norm", pointer, pointer, pointer, count, count, real)
    sizes = (x.numel() // x.shape[-1], x.shape[-1], eps)
    run(isa, *_given(x, weight, y), *sizes, pool(), torch.get_num_threads())
    return y


def swiglu(x: Float[Tensor, "T I2"], isa: int = -1) -> Float[Tensor, "T I"]:
    """up * silu(gate), x being the gate's half and up's."""
    (tokens, both), x = x.shape, x.contiguous()
    y = torch.empty(tokens, both // 2, dtype=x.dtype)
    run = _function("polyphi_gate", pointer, pointer, count, count)
    run(isa, *_given(x, y), tokens, both // 2, pool(), torch.get_num_threads())
    return y


def rotate(
    heads: Float[Tensor, "T heads d"],
    cos: Float[Tensor, "T 1 pairs"],
    sin: Float[Tensor, "T 1 pairs"],
    isa: int = -1,
) -> Float[Tensor, "T heads d"]:
    """The first 2 * pairs channels of every head turned, as by `model.rope.rotate`."""
    if heads.stride()[1:] != (heads.shape[2], 1):
        heads = heads.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(heads.shape, dtype=heads.dtype)
    run = _function(
        "polyphi_turn", pointer, count, pointer, pointer, pointer, count, number, number, number
    )
    half, x, c, s, to = _given(heads, cos, sin, y)
    sizes = (*heads.shape, cos.shape[-1])
    run(isa, half, x, heads.stride(0), c, s, to, *sizes, pool(), torch.get_num_threads())
    return y


def _given(*tensors: Tensor) -> tuple[int, ...]:
    """Whether they are bfloat16, and where they are."""
    return (int(tensors[0].dtype == torch.bfloat16), *(t.data_ptr() for t in tensors))
