"""Attention over the block cache (attention.cpp).

>>> where = Where(starts, ends, tables)                    # once for all layers of a step
>>> attend(q, k, v, memory, where)                         # writes k and v [T K d], and gives [T H d]
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from polyphi.kernels.native import count, fits, function, library, number, pointer, pool

BLOCK = 32
"""Tokens that lie side by side in memory."""
WIDTH = 16
"""A head's channels are a multiple of so many."""
SHARED = 64
"""Query heads that a kv head may serve."""


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
    held = library()
    return 0 if isinstance(held, str) else int(held.polyphi_pairs())


class Where:
    """Where the sequences of a step lie: `starts` [S + 1] among its tokens, their lengths `ends` [S], new tokens
    included, and the blocks of each, in order."""

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
        self.given = [t.data_ptr() for t in self._tensors]


class Held(NamedTuple):
    """A layer's keys and values, a head's rows side by side, in the type of the queries or int8; then with the scales
    of both."""

    keys: Shaped[Tensor, "rows K d"]
    values: Shaped[Tensor, "rows K d"]
    key_scales: Float[Tensor, "rows K"] | None = None
    value_scales: Float[Tensor, "rows K"] | None = None


def takes(q: Float[Tensor, "T H d"], k: Tensor, v: Tensor, held: Held) -> bool:
    """Whether `attend` can take them."""
    (_, heads, d), kv_heads = q.shape, k.shape[1]
    return (
        fits(q, k, v)
        and held.keys.dtype in (q.dtype, torch.int8)
        and d % WIDTH == 0
        and heads // kv_heads <= SHARED
        and all(x.stride()[1:] == (d, 1) for x in (q, k, v))
    )


def attend(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    held: Held,
    where: Where,
    isa: int = -1,
    by_pairs: int | None = None,
) -> Float[Tensor, "T H d"]:
    """Writes new keys and values into memory; every new token attends to what is held of its sequence up to itself.
    In float32 or bfloat16. `isa` and `by_pairs` are for tests: a place in `PATHS`, and 0 to do without pairs."""
    tokens, heads, d = q.shape
    out = torch.empty(tokens, heads, d, dtype=q.dtype)
    scales = (held.key_scales, held.value_scales)
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
        held.keys.data_ptr(),
        held.values.data_ptr(),
        *(None if s is None else s.data_ptr() for s in scales),
        held.keys.shape[0],
        heads,
        k.shape[1],
        d,
        where.sequences,
        *where.given,
        pool(),
        torch.get_num_threads(),
    )
    return out
