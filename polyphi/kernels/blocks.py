"""The operations between the products of a decoder's block (blocks.cpp): RMS norm, SwiGLU, rotary embedding.

Inputs are float32 or bfloat16, all of one dtype; `isa` is for tests: an index in `PATHS`.
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
    """RMS norm: x divided by its root mean square, rounded to its dtype, times the weight."""
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    run = _function("polyphi_norm", pointer, pointer, pointer, count, count, real)
    sizes = (x.numel() // x.shape[-1], x.shape[-1], eps)
    run(isa, *_arguments(x, weight, y), *sizes, pool(), torch.get_num_threads())
    return y


def swiglu(x: Float[Tensor, "T I2"], isa: int = -1) -> Float[Tensor, "T I"]:
    """up * silu(gate), where x is [gate, up]."""
    (tokens, both), x = x.shape, x.contiguous()
    y = torch.empty(tokens, both // 2, dtype=x.dtype)
    run = _function("polyphi_gate", pointer, pointer, count, count)
    run(isa, *_arguments(x, y), tokens, both // 2, pool(), torch.get_num_threads())
    return y


def rotate(
    heads: Float[Tensor, "T heads d"],
    cos: Float[Tensor, "T 1 pairs"],
    sin: Float[Tensor, "T 1 pairs"],
    isa: int = -1,
) -> Float[Tensor, "T heads d"]:
    """Rotary embedding of the first 2 * pairs channels of every head, as by `model.rope.rotate`."""
    if heads.stride()[1:] != (heads.shape[2], 1):
        heads = heads.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(heads.shape, dtype=heads.dtype)
    run = _function(
        "polyphi_turn", pointer, count, pointer, pointer, pointer, count, number, number, number
    )
    half, x, c, s, to = _arguments(heads, cos, sin, y)
    sizes = (*heads.shape, cos.shape[-1])
    run(isa, half, x, heads.stride(0), c, s, to, *sizes, pool(), torch.get_num_threads())
    return y


def _arguments(*tensors: Tensor) -> tuple[int, ...]:
    """Whether the tensors are bfloat16, and their addresses."""
    return (int(tensors[0].dtype == torch.bfloat16), *(t.data_ptr() for t in tensors))
