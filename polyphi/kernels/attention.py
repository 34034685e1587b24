"""Attention over the block cache (attention.cpp).

>>> layout = BlockLayout(starts, ends, tables)             # once for all layers of a step
>>> attend(q, k, v, layer, layout)                         # writes k and v [T K d], returns [T H d]
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from polyphi.kernels.native import count, fits, function, library, number, pointer, pool

BLOCK = 32
"""Tokens of a cache block, contiguous in memory."""
WIDTH = 16
"""The number of channels of a head must be a multiple of this."""
MAX_GROUP = 64
"""Most query heads per kv head."""


@cache
def _attend() -> Callable[..., None]:
    tensors, strides = [pointer] * 4, [count] * 3
    memory, sizes = [pointer] * 4, [count, number, number, number]
    tables = [number, *[pointer] * 4]
    start = [number, number, number]
    return function(
        "polyphi_attend", *start, *tensors, *strides, *memory, *sizes, *tables, pointer, number
    )


@cache
def pairs() -> int:
    """1 where this CPU multiplies pairs of bfloat16 (AVX-512 BF16), else 0."""
    native = library()
    return 0 if isinstance(native, str) else int(native.polyphi_pairs())


class BlockLayout:
    """The sequences of a step: their `starts` [S + 1] among its tokens, their lengths `ends` [S] with new tokens, and
    the blocks of each, in order."""

    def __init__(
        self, starts: Sequence[int], ends: Sequence[int], blocks: Sequence[Sequence[int]]
    ) -> None:
        first: list[int] = []
        flat: list[int] = []
        for some in blocks:
            first.append(len(flat))
            flat += some
        self.sequences = len(ends)
        self._tensors = [torch.tensor(n) for n in (starts, ends, first)]
        self._tensors.append(torch.tensor(flat, dtype=torch.int32))
        self.pointers = [t.data_ptr() for t in self._tensors]


class KVLayer(NamedTuple):
    """A layer's cached keys and values, a head's rows contiguous, in the dtype of the queries, or in int8 with the
    scales of both."""

    keys: Shaped[Tensor, "rows K d"]
    values: Shaped[Tensor, "rows K d"]
    key_scales: Float[Tensor, "rows K"] | None = None
    value_scales: Float[Tensor, "rows K"] | None = None


def supports(q: Float[Tensor, "T H d"], k: Tensor, v: Tensor, cached: KVLayer) -> bool:
    """Whether `attend` supports these shapes, strides and dtypes."""
    (_, heads, d), kv_heads = q.shape, k.shape[1]
    return (
        fits(q, k, v)
        and cached.keys.dtype in (q.dtype, torch.int8)
        and d % WIDTH == 0
        and heads // kv_heads <= MAX_GROUP
        and all(x.stride()[1:] == (d, 1) for x in (q, k, v))
    )


def attend(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    cached: KVLayer,
    layout: BlockLayout,
    isa: int = -1,
    by_pairs: int | None = None,
) -> Float[Tensor, "T H d"]:
    """Writes new keys and values into the cache; every new token attends to the cached tokens of its sequence and to
    the new ones up to itself. In float32 or bfloat16. `isa` and `by_pairs` are for tests: an index in `PATHS`, and 0
    to disable products of pairs."""
    tokens, heads, d = q.shape
    out = torch.empty(tokens, heads, d, dtype=q.dtype)
    scales = (cached.key_scales, cached.value_scales)
    _attend()(
        isa,
        pairs() if by_pairs is None else by_pairs,
        int(q.dtype == torch.bfloat16),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        cached.keys.data_ptr(),
        cached.values.data_ptr(),
        *(None if s is None else s.data_ptr() for s in scales),
        cached.keys.shape[0],
        heads,
        k.shape[1],
        d,
        layout.sequences,
        *layout.pointers,
        pool(),
        torch.get_num_threads(),
    )
    return out
