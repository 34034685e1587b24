"""Causal attention over a pack: every sequence sees itself and what its cache holds, never its neighbour.

Three sequences of 2, 1 and 3 tokens in one pack, none cached (row = query, column = key)::

    1 . . . . .
    1 1 . . . .
    . . 1 . . .
    . . . 1 . .
    . . . 1 1 .
    . . . 1 1 1

With a cache a sequence has more keys than queries and the triangle sits at the bottom right: 2 new tokens after 3
cached ones read `1 1 1 1 .` and `1 1 1 1 1`.

One function, two ways to compute it: a loop of `scaled_dot_product_attention` over the sequences, which runs anywhere,
and on CUDA in half precision one call of `torch.nn.attention.varlen`.
"""

import inspect
import math
from collections.abc import Sequence
from functools import cache as once
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class KVCache(Protocol):
    """Where keys and values of earlier tokens live. The model asks; the engine decides how they are stored."""

    def extend(
        self,
        layer: int,
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        lengths: Sequence[int],
    ) -> tuple[list[Float[Tensor, "n K d"]], list[Float[Tensor, "n K d"]]]:
        """Take the new keys (already rotated) and values of a pack whose sequences have `lengths` new tokens, and
        return each sequence's keys and values so far, the new ones last."""
        ...


def working_dtype(x: Tensor) -> torch.dtype:
    """The type that a linear gives for `x`: the narrow one inside `torch.autocast`, else its own."""
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if mixed else x.dtype


def packed_attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    bounds: Sequence[int],
    *,
    cache: KVCache | None = None,
    layer: int = 0,
) -> Float[Tensor, "T H d"]:
    """Grouped-query causal attention, sequence by sequence (`bounds` as in `Batch`): kv head j serves the query heads
    j H/K to (j + 1) H/K - 1, scores are scaled by 1/sqrt(d)."""
    lengths = [end - start for start, end in pairwise(bounds)]
    if cache is None and not q.is_cuda and len(lengths) > 1:
        return _grouped(q, k, v, lengths)
    # `split` rather than slices: its gradient is one concatenation, a slice's is a pack full of zeros per sequence.
    keys, values = (
        (list(k.split(lengths)), list(v.split(lengths)))
        if cache is None
        else cache.extend(layer, k, v, lengths)
    )
    if (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and (varlen := _varlen()) is not None
    ):
        return _one_call(varlen, q, keys, values, lengths)
    parts = [_causal(*three) for three in zip(q.split(lengths), keys, values, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _causal(
    q: Float[Tensor, "t H d"], k: Float[Tensor, "n K d"], v: Float[Tensor, "n K d"]
) -> Float[Tensor, "t H d"]:
    """One sequence: its t newest tokens against all its n keys."""
    (t, heads, d), (n, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    if t == 1:
        # A single token sees everything, so the query heads of a group can stand where the tokens would.
        k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(q.view(1, kv_heads, group, d), k, v)
        return out.reshape(1, heads, d)
    # [K, H/K, t, d] against keys seen H/K times through a stride of zero: grouped heads without a copy.
    queries = q.view(t, kv_heads, group, d).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(kv_heads, group, n, d) for x in (k, v))
    corner = None if t == n else torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=corner, is_causal=corner is None)
    return out.permute(2, 0, 1, 3).reshape(t, heads, d)


SHORT = 64
"""Up to this length attention is written out: the fused CPU kernel's backward takes 2 to 16 times as long there
(18 to 64 tokens, bf16, one core); beyond, it wins."""


class _Group(NamedTuple):
    """Sequences of similar length side by side: `gather` [sequences * longest] picks their tokens; padding repeats
    token 0 of the pack at the right end, where a causal mask hides it."""

    sequences: int
    longest: int
    gather: Int[Tensor, " SL"]


@lru_cache(maxsize=2)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[_Group, ...], Int[Tensor, " T"]]:
    """Groups with at most a quarter (or 8 tokens) of padding a sequence, and where each token of the pack comes
    out."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    groups, place, out = [], np.empty(starts[-1], dtype=np.int64), 0
    order = sorted(range(len(lengths)), key=lambda s: lengths[s])
    while order:
        most = max(lengths[order[0]] + 8, lengths[order[0]] * 5 // 4)
        mine = [s for s in order if lengths[s] <= most]
        order = order[len(mine) :]
        longest = lengths[mine[-1]]
        real = np.arange(longest) < np.array([lengths[s] for s in mine])[:, None]
        tokens = np.where(real, starts[mine][:, None] + np.arange(longest), 0)
        place[tokens[real]] = out + np.flatnonzero(real)
        out += real.size
        groups.append(_Group(len(mine), longest, torch.from_numpy(tokens.ravel())))
    return tuple(groups), torch.from_numpy(place)


def padding(bounds: Sequence[int]) -> int:
    """Tokens that the CPU's attention computes in vain for a pack: where sequences of similar length attend together,
    the shorter ones are padded. On a GPU, and for a single sequence, there are none."""
    lengths = tuple(end - start for start, end in pairwise(bounds))
    if len(lengths) < 2:
        return 0
    groups, place = _groups(lengths)
    return sum(len(group.gather) for group in groups) - len(place)


def _grouped(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Float[Tensor, "T H d"]:
    """Many sequences with few calls: those of similar length attend together, padded on the right."""
    groups, place = _groups(tuple(lengths))
    (_, heads, d), kv_heads = q.shape, k.shape[1]
    share = heads // kv_heads
    outs = []
    for group in groups:
        shape = (group.sequences, group.longest)
        queries = q.index_select(0, group.gather).view(*shape, heads, d).transpose(1, 2)
        keys, values = (
            _repeated(x.index_select(0, group.gather).view(*shape, kv_heads, d), share)
            for x in (k, v)
        )
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if group.longest <= SHORT:
            future = torch.ones(group.longest, group.longest, dtype=torch.bool, device=q.device)
            out = written_out(queries, keys, values, future.triu(1))
        else:
            out = _fused(queries, keys, values)
        outs.append(out.transpose(1, 2).reshape(-1, heads, d))
    return torch.cat(outs).index_select(0, place)


def _repeated(x: Float[Tensor, "S t K d"], share: int) -> Float[Tensor, "S t H d"]:
    """Every kv head `share` times in a row (one copy; `repeat_interleave` takes longer)."""
    return x[:, :, :, None].expand(*x.shape[:3], share, x.shape[3]).flatten(2, 3)


def written_out(
    q: Float[Tensor, "S H t d"],
    k: Float[Tensor, "S H t d"],
    v: Float[Tensor, "S H t d"],
    hidden: Bool[Tensor, "*b n t"],
) -> Float[Tensor, "S H t d"]:
    """Softmax attention as its formula says, softmax in float32; nobody sees keys where `hidden` is True."""
    scores = _wide(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype) @ v


def _fused(
    q: Float[Tensor, "S H t d"], k: Float[Tensor, "S H t d"], v: Float[Tensor, "S H t d"]
) -> Tensor:
    """torch's fused kernel, in float32: on the CPU its half-precision backward is slower."""
    return F.scaled_dot_product_attention(_wide(q), _wide(k), _wide(v), is_causal=True).to(q.dtype)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@once
def _varlen() -> Any:
    """torch's variable-length flash attention, where this build has it with grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"enable_gqa", "window_size"} <= known.keys() else None


def _one_call(
    varlen: Any, q: Tensor, keys: list[Tensor], values: list[Tensor], lengths: list[int]
) -> Tensor:
    """The whole pack in one kernel; `window_size=(-1, 0)` is causal with the triangle at the bottom right."""

    def starts(sizes: list[int]) -> Tensor:
        total = torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return total.to(q.device, non_blocking=True)

    totals = [len(key) for key in keys]
    k, v = torch.cat(keys).contiguous(), torch.cat(values).contiguous()
    return varlen(
        q.contiguous(),
        k,
        v,
        starts(lengths),
        starts(totals),
        max(lengths),
        max(totals),
        window_size=(-1, 0),
        enable_gqa=True,
    )
