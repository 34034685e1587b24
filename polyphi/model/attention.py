"""Causal attention over a pack: every sequence attends to itself and its cached tokens, never to its neighbour.

Three sequences of 2, 1 and 3 tokens in one pack, none cached (row = query, column = key)::

    1 . . . . .
    1 1 . . . .
    . . 1 . . .
    . . . 1 . .
    . . . 1 1 .
    . . . 1 1 1

With a cache a sequence has more keys than queries and the causal mask is aligned at the bottom right: the rows of 2 new
tokens after 3 cached ones are `1 1 1 1 .` and `1 1 1 1 1`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from polyphi.model.buckets import buckets


@runtime_checkable
class KVCache(Protocol):
    """Keys and values of earlier tokens. The model calls `attend`; the engine decides how they are stored."""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        cu_seqlens: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """Store the new keys (already rotated) and values of a pack, and attend: every new token sees the cached tokens
        of its sequence and the new ones up to itself."""
        ...


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear's output for the input `x`: autocast's inside `torch.autocast`, else that of `x`."""
    device_type = x.device.type
    mixed = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if mixed else x.dtype


def packed_attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    cu_seqlens: Sequence[int],
) -> Float[Tensor, "T H d"]:
    """Grouped-query causal attention, sequence by sequence (`cu_seqlens` as in `Batch`): kv head j serves the query
    heads j H/K to (j + 1) H/K - 1, logits are scaled by 1/sqrt(d)."""
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    if not q.is_cuda and len(lengths) > 1:
        return _bucketed_attention(q, k, v, tuple(lengths))
    # `split` rather than slices: its gradient is one concatenation, a slice's is a whole pack of zeros per sequence.
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    outs = [causal_attention(*part) for part in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def causal_attention(
    q: Float[Tensor, "t H d"], k: Float[Tensor, "n K d"], v: Float[Tensor, "n K d"]
) -> Float[Tensor, "t H d"]:
    """Causal attention of the t newest tokens of one sequence to all its n keys."""
    (t, heads, d), (n, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    # [K, H/K, t, d] with keys repeated H/K times by a stride of zero: grouped heads without a copy.
    queries = q.view(t, kv_heads, group, d).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(kv_heads, group, n, d) for x in (k, v))
    mask = None if t == n else torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, is_causal=mask is None)
    return out.permute(2, 0, 1, 3).reshape(t, heads, d)


MAX_EXPLICIT = 256
"""Maximum length of attention that is computed by its formula: the fused CPU kernel's backward takes 2 to 16 times as
long (18 to 64 tokens, bf16, one core); with 256 instead of 64 a step of 1,600 tokens of text takes 10 % less, one of
pictures 12 %."""

_buckets = lru_cache(maxsize=2)(buckets)  # once for all layers


def padding(cu_seqlens: Sequence[int]) -> int:
    """Number of padding tokens that the CPU's attention computes for a pack: sequences of similar length are batched,
    and the shorter ones padded. On a GPU, and for a single sequence, there is no padding."""
    lengths = tuple(end - start for start, end in pairwise(cu_seqlens))
    if len(lengths) < 2:
        return 0
    batches, index = _buckets(lengths)
    return sum(len(bucket.gather) for bucket in batches) - len(index)


def _bucketed_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]
) -> Float[Tensor, "T H d"]:
    """Attention of many sequences with few calls: the padding of a bucket is at the right end, where a causal mask
    hides it."""
    batches, index = _buckets(lengths)
    (_, heads, d), kv_heads = q.shape, k.shape[1]
    outs = []
    for bucket in batches:
        shape, longest = (bucket.sequences, bucket.longest), bucket.longest
        queries, keys, values = (
            x.index_select(0, bucket.gather).view(*shape, -1, d) for x in (q, k, v)
        )
        # Every kv head H/K times in a row, by one copy; `repeat_interleave` takes longer.
        keys, values = (
            x[:, :, :, None].expand(*shape, kv_heads, heads // kv_heads, d).flatten(2, 3)
            for x in (keys, values)
        )
        queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
        if longest <= MAX_EXPLICIT:
            future = torch.ones(longest, longest, dtype=torch.bool, device=q.device).triu(1)
            out = explicit_attention(queries, keys, values, future)
        else:
            # In float32: the half-precision backward of torch's fused kernel is slower on a CPU.
            queries, keys, values = (at_least_float32(x) for x in (queries, keys, values))
            out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).to(q.dtype)
        outs.append(out.transpose(1, 2).reshape(-1, heads, d))
    return torch.cat(outs).index_select(0, index)


def explicit_attention(
    q: Float[Tensor, "S H t d"],
    k: Float[Tensor, "S H t d"],
    v: Float[Tensor, "S H t d"],
    masked: Bool[Tensor, "*b"],
) -> Float[Tensor, "S H t d"]:
    """Softmax attention by its formula, softmax in float32; keys are masked where `masked` is True."""
    logits = at_least_float32(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return logits.masked_fill(masked, -torch.inf).softmax(-1).to(v.dtype) @ v


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
