"""Linear layers with bfloat16 weights and float32 sums (bf16.cpp).

>>> linear(x, weight, bias)                                  # [T I] by [O I] -> [T O]
>>> add(y, linear(x, a), b, scale=2.0)                       # y + 2 B A x, in place

For one token the kernel is bound by memory bandwidth, which torch's kernels don't reach. For many tokens it is faster
than torch only on a CPU without bfloat16 instructions (`needed`), where torch runs at a tenth of the speed of float32.
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
    """Whether torch has no fast bfloat16 products on this CPU: oneDNN has them from AVX-512 on, and on Arm CPUs with
    bfloat16 instructions."""
    has_onednn = torch.backends.mkldnn.is_available()
    return not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def supports(x: Float[Tensor, "*T I"], weight: Float[Tensor, "O I"]) -> bool:
    """Whether `linear` is correct and faster than torch here: x and weight in bfloat16 without gradients, and a single
    token or a CPU without bfloat16 instructions."""
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
    """The linear layer of x, in float32 or bfloat16, with a bfloat16 weight and bias; in the dtype of x, rounded once.
    `isa` is for tests: an index in `native.PATHS`. Raises ValueError for other dtypes and shapes that don't fit."""
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
    """Add `scale` times the product of x and the weight to y in place, rounded once; y has the dtype of x."""
    if y.dtype != x.dtype or not y.is_contiguous():
        raise ValueError(f"expected a contiguous sum in {x.dtype}, found {y.dtype}")
    _run(x, weight, None, y, 1.0, scale, isa)
    return y


@cache
def _product() -> Callable[..., None]:
    head = (number, *[pointer] * 4, number, c_float, c_float)
    return function("polyphi_bf16", *head, *[count] * 3, pointer, number)


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
            f"expected a weight in bfloat16 and tokens in bfloat16 or float32, found {weight.dtype} and {x.dtype}"
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
    _product()(
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
