"""Pieces of the encoders (encoder.cpp): attention over bfloat16, and what stands between products of 8 bits.

>>> y = attention(q, k, v, heads, queries, keys)            # [T H*d] each, segment after segment
>>> x, q = norm(x, layer_norm, product)                     # x + product, its norm in 8 bits

A product is `Raw`: as an int8 kernel leaves it, without the scales of its rows and without bias. What the next one
multiplies is `Rows`: bytes q + 128 and a scale per row. So between two products memory is read and written once.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from polyphi.kernels.native import count, function, library, number, pointer, pool, real

LANES = 16
"""Columns of all rows are a multiple of so many."""
ACTIVATIONS = ("none", "relu", "silu", "gelu", "gated")
"""What `activate` knows: GELU in its tanh form; gated are value * silu(gate), the two beside each other."""


class Rows(NamedTuple):
    """Activations (q - 128) * scale."""

    q: UInt8[Tensor, "T D"]
    scale: Float[Tensor, " T"]


class Raw(NamedTuple):
    """A product y * scale + bias, of which `y` is there. What is None isn't owed."""

    y: Float[Tensor, "T D"]
    scale: Float[Tensor, " T"] | None = None
    bias: Float[Tensor, " D"] | None = None


@cache
def widest() -> int:
    """The widest head that `attention` takes: 0 where there are no kernels, or this CPU has no products of
    bfloat16."""
    held = library()
    return 0 if isinstance(held, str) else int(held.polyphi_attends())


def attends(weight: Tensor, width: int) -> bool:
    """Whether `attention` can stand in for torch's: no gradient is asked for, a model's weights are bfloat16 on a CPU
    that multiplies those, its heads (`width` channels) fit."""
    return (
        not torch.is_grad_enabled()
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and width % 2 == 0
        and width <= widest()
    )


@cache
def _attention() -> Callable[..., None]:
    sizes = (count, count, count, pointer, count)
    return function(
        "polyphi_attention", *[pointer] * 3, count, *[pointer] * 6, *sizes, pointer, number
    )


def attention(
    q: Float[Tensor, "T HD"],
    k: Float[Tensor, "T HD"],
    v: Float[Tensor, "T HD"],
    heads: int,
    queries: Sequence[int],
    keys: Sequence[int],
    distances: Float[Tensor, "H L"] | None = None,
    scale: Float[Tensor, " T"] | None = None,
    bias: Float[Tensor, " HD3"] | None = None,
) -> Float[Tensor, "T HD"]:
    """Softmax attention in bfloat16 within segments of `queries` rows each, of which all see the first `keys` rows (no
    rows: the result is 0). `distances` [H 2L-1], for segments of up to L rows, are added to the scaled scores by
    (key - query). `scale` and `bias` (of the three beside each other) are what q, k and v owe as `Raw`."""
    stride = q.stride(0)
    assert all(t.dtype == torch.bfloat16 and t.stride() == (stride, 1) for t in (q, k, v))
    y = torch.empty(q.shape, dtype=q.dtype)
    sizes = torch.tensor([queries, keys])
    starts = sizes[0].cumsum(0) - sizes[0]
    longest = 0
    if distances is not None:
        distances = distances.float().contiguous()
        longest = (distances.shape[1] + 1) // 2
    _attention()(
        *(t.data_ptr() for t in (q, k, v)),
        stride,
        _at(scale),
        _at(bias),
        y.data_ptr(),
        starts.data_ptr(),
        sizes[0].data_ptr(),
        sizes[1].data_ptr(),
        len(queries),
        heads,
        q.shape[1] // heads,
        _at(distances),
        longest,
        pool(),
        torch.get_num_threads(),
    )
    return y


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
