"""The operations between the products of a block (blocks.cpp), with gradients: RMS norm, SwiGLU, rotary embedding,
GELU.

Inputs are float32 or bfloat16, all of one dtype; `isa` is for tests: an index in `PATHS`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from polyphi.kernels.native import count, fake, function, number, pointer, pool, real


@cache
def _function(name: str, *arguments: Any) -> Callable[..., None]:
    return function(name, number, number, *arguments, pointer, number)


NORMS = 128
"""Tokens over which a kernel sums the gradients of a norm's weight."""


def rms_norm(
    x: Float[Tensor, "T D"], weight: Float[Tensor, " D"], eps: float, isa: int = -1
) -> Float[Tensor, "T D"]:
    """RMS norm: x divided by its root mean square, rounded to its dtype, times the weight."""
    if torch.is_grad_enabled():
        with_gradients: Tensor = _Norm.apply(x.contiguous(), weight, eps, isa)
        return with_gradients
    x, y = x.contiguous(), x.new_empty(x.shape)
    if fake(x):
        return y
    run = _function("polyphi_norm", pointer, pointer, pointer, count, count, real)
    run(isa, *_arguments(x, weight, y), *_rows(x), eps, pool(), torch.get_num_threads())
    return y


def swiglu(x: Float[Tensor, "T I2"], isa: int = -1) -> Float[Tensor, "T I"]:
    """up * silu(gate), where x is [gate, up]."""
    return _elementwise("gate", x, x.shape[-1] // 2, isa)


def gelu(x: Float[Tensor, "*T D"], isa: int = -1) -> Float[Tensor, "*T D"]:
    """GELU in its tanh form."""
    return _elementwise("gelu", x, x.shape[-1], isa)


def rotate(
    heads: Float[Tensor, "T heads d"],
    cos: Float[Tensor, "T 1 pairs"],
    sin: Float[Tensor, "T 1 pairs"],
    isa: int = -1,
) -> Float[Tensor, "T heads d"]:
    """Rotary embedding of the first 2 * pairs channels of every head, as by `model.rope.rotate`; no gradients of cos
    and sin."""
    if torch.is_grad_enabled():
        with_gradients: Tensor = _Turn.apply(heads, cos, sin, isa)
        return with_gradients
    if heads.stride()[1:] != (heads.shape[2], 1):
        heads = heads.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = heads.new_empty(heads.shape)
    if fake(heads):
        return y
    run = _function(
        "polyphi_turn", pointer, count, pointer, pointer, pointer, count, number, number, number
    )
    half, x, c, s, to = _arguments(heads, cos, sin, y)
    sizes = (*heads.shape, cos.shape[-1])
    run(isa, half, x, heads.stride(0), c, s, to, *sizes, pool(), torch.get_num_threads())
    return y


# Autograd computes no gradients within `forward` and `backward`, so the operations above run their kernels there.
class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, isa: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.isa = eps, isa
        return rms_norm(x, weight, eps, isa)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), dy = ctx.saved_tensors, dy.contiguous()
        tokens, d = _rows(x)
        dx, pieces = torch.empty_like(x), -(-tokens // NORMS)
        of_weight = x.new_zeros(pieces, d, dtype=torch.float32)
        if not fake(x):
            run = _function("polyphi_norm_backward", *[pointer] * 5, count, count, count, real)
            addresses = (*_arguments(x, weight, dy, dx), of_weight.data_ptr())
            run(ctx.isa, *addresses, NORMS, tokens, d, ctx.eps, pool(), torch.get_num_threads())
        return dx, of_weight.sum(0).to(weight.dtype), None, None


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: str, x: Tensor, width: int, isa: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernel, ctx.isa = kernel, isa
        return _elementwise(kernel, x, width, isa)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,), dy = ctx.saved_tensors, dy.contiguous()
        dx = torch.empty_like(x)
        if not fake(x):
            name = f"polyphi_{ctx.kernel}_backward"
            run = _function(name, pointer, pointer, pointer, count, count)
            run(ctx.isa, *_arguments(x, dy, dx), *_rows(dy), pool(), torch.get_num_threads())
        return None, dx, None, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, isa: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.isa = isa
        return rotate(heads, cos, sin, isa)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotate(dy, cos, -sin, ctx.isa), None, None, None


def _elementwise(kernel: str, x: Tensor, width: int, isa: int) -> Tensor:
    """Rows of `width` numbers, each row computed from one of x."""
    x = x.contiguous()
    if torch.is_grad_enabled():
        with_gradients: Tensor = _Elementwise.apply(kernel, x, width, isa)
        return with_gradients
    y = x.new_empty(*x.shape[:-1], width)
    if not fake(x):
        run = _function(f"polyphi_{kernel}", pointer, pointer, count, count)
        run(isa, *_arguments(x, y), *_rows(y), pool(), torch.get_num_threads())
    return y


def _rows(x: Tensor) -> tuple[int, int]:
    """The number of rows, and of numbers in each."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _arguments(*tensors: Tensor) -> tuple[int, ...]:
    """Whether the tensors are bfloat16, and their addresses."""
    return (int(tensors[0].dtype == torch.bfloat16), *(t.data_ptr() for t in tensors))
