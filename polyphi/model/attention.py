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

`packed_attention` is for packs without a cache, `continued_attention` for one sequence with cached keys and values,
which may be in several pieces of memory. Both are loops of fused calls, which run anywhere; on CUDA in half precision a
whole pack is one call of `torch.nn.attention.varlen` (`varlen_attention`).
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


Piece = tuple[Float[Tensor, "n K d"], Float[Tensor, "n K d"]]
"""Keys and values of consecutive tokens."""


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
        return _grouped(q, k, v, lengths)
    # `split` rather than slices: its gradient is one concatenation, a slice's is a whole pack of zeros per sequence.
    return ragged_attention(q, k.split(lengths), v.split(lengths), lengths)


def ragged_attention(
    q: Float[Tensor, "T H d"],
    keys: Sequence[Float[Tensor, "n K d"]],
    values: Sequence[Float[Tensor, "n K d"]],
    lengths: Sequence[int],
) -> Float[Tensor, "T H d"]:
    """Attention of the newest `lengths[s]` tokens of each sequence s to all of its keys; the causal mask is aligned at
    the bottom right."""
    if varlen_supported(q):
        sizes = [len(k) for k in keys]
        starts = [cumulative_lengths(n, q.device) for n in (lengths, sizes)]
        k, v = torch.cat(list(keys)), torch.cat(list(values))
        return varlen_attention(q, k, v, starts[0], starts[1], max(lengths), max(sizes))
    parts = [_causal(*three) for three in zip(q.split(list(lengths)), keys, values, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def continued_attention(
    q: Float[Tensor, "t H d"],
    k: Float[Tensor, "t K d"],
    v: Float[Tensor, "t K d"],
    cached: Sequence[Piece],
) -> Float[Tensor, "t H d"]:
    """Attention of the t newest tokens of one sequence to its cached tokens and, causally, to each other. On the CPU
    each piece is attended in place, and the results are weighted by the sums of their exponentials: nothing is copied.
    """
    if not cached:
        return _causal(q, k, v)
    if q.device.type != "cpu":
        keys, values = (
            torch.cat([*(piece[i] for piece in cached), new]) for i, new in enumerate((k, v))
        )
        return _causal(q, keys, values)
    (t, heads, d), kv_heads = q.shape, k.shape[1]
    group = heads // kv_heads
    # Queries that attend to a whole piece can share one dimension: [1, K, H/K * t, d], and no key is repeated.
    rows = q.view(t, kv_heads, group, d).permute(1, 2, 0, 3)
    results = [
        _attention_and_log_sum(rows.reshape(1, kv_heads, group * t, d), *_heads_first(p))
        for p in cached
    ]
    outputs = [output.view(kv_heads, group, t, d) for output, _ in results]
    log_sums = [log_sum.view(kv_heads, group, t) for _, log_sum in results]
    new_keys, new_values = (
        x[0][:, None].expand(kv_heads, group, t, d) for x in _heads_first((k, v))
    )
    output, log_sum = _attention_and_log_sum(rows, new_keys, new_values, causal=True)
    # In float32 at least: the weights are numbers between 0 and 1.
    weights = torch.stack([*log_sums, log_sum]).softmax(0)[..., None]
    combined = (torch.stack([_at_least_float32(o) for o in (*outputs, output)]) * weights).sum(0)
    return combined.to(q.dtype).permute(2, 0, 1, 3).reshape(t, heads, d)


def last_token_attention(
    q: Float[Tensor, "1 H d"], cached: Sequence[Piece]
) -> Float[Tensor, "1 H d"]:
    """Attention of the newest token of a sequence to pieces that hold all of its tokens, the newest included."""
    if len(cached) == 1 or q.device.type != "cpu":
        keys, values = cached[0] if len(cached) == 1 else map(torch.cat, zip(*cached, strict=True))
        return _causal(q, keys, values)
    (_, heads, d), kv_heads = q.shape, cached[0][0].shape[1]
    rows = q.view(1, kv_heads, heads // kv_heads, d)
    outs, logs = zip(*(_attention_and_log_sum(rows, *_heads_first(p)) for p in cached), strict=True)
    weights = torch.stack(logs).softmax(0)[..., None]
    mixed = (torch.stack([_at_least_float32(o) for o in outs]) * weights).sum(0)
    return mixed.to(q.dtype).reshape(1, heads, d)


def _heads_first(piece: Piece) -> tuple[Tensor, Tensor]:
    """Keys and values [n K d] as [1 K n d], without a copy."""
    keys, values = piece
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


def _attention_and_log_sum(
    q: Float[Tensor, "B h t d"],
    k: Float[Tensor, "B h n d"],
    v: Float[Tensor, "B h n d"],
    causal: bool = False,
) -> tuple[Float[Tensor, "B h t d"], Float[Tensor, "B h t"]]:
    """Attention and the logarithm of each query's sum of exponentials, by torch's fused CPU kernel."""
    result: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal
    )
    return result


def _causal(
    q: Float[Tensor, "t H d"], k: Float[Tensor, "n K d"], v: Float[Tensor, "n K d"]
) -> Float[Tensor, "t H d"]:
    """Causal attention of the t newest tokens of one sequence to all its n keys."""
    (t, heads, d), (n, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    if t == 1:
        # A single token attends to all keys, so the query heads of a group can take the dimension of the tokens.
        k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(q.view(1, kv_heads, group, d), k, v)
        return out.reshape(1, heads, d)
    # [K, H/K, t, d] with keys repeated H/K times by a stride of zero: grouped heads without a copy.
    queries = q.view(t, kv_heads, group, d).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(kv_heads, group, n, d) for x in (k, v))
    mask = None if t == n else torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, is_causal=mask is None)
    return out.permute(2, 0, 1, 3).reshape(t, heads, d)


MAX_EXPLICIT = 256
"""Up to this length attention is computed by its formula: the fused CPU kernel's backward takes 2 to 16 times as long
(18 to 64 tokens, bf16, one core); with 256 instead of 64 a step of 1,600 tokens of text takes 10 % less, one of
pictures 12 %."""


class _Group(NamedTuple):
    """Sequences of similar length, padded to one batch: `gather` [sequences * longest] is the index of their tokens in
    the pack; padding repeats token 0 of the pack at the right end, where a causal mask hides it."""

    sequences: int
    longest: int
    gather: Int[Tensor, " SL"]


@lru_cache(maxsize=2)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[_Group, ...], Int[Tensor, " T"]]:
    """(groups with at most a quarter or 8 tokens of padding per sequence, index of each token of the pack in the
    concatenated groups)."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    groups, index, out = [], np.empty(starts[-1], dtype=np.int64), 0
    order = sorted(range(len(lengths)), key=lambda s: lengths[s])
    while order:
        max_length = max(lengths[order[0]] + 8, lengths[order[0]] * 5 // 4)
        members = [s for s in order if lengths[s] <= max_length]
        order = order[len(members) :]
        longest = lengths[members[-1]]
        is_token = np.arange(longest) < np.array([lengths[s] for s in members])[:, None]
        tokens = np.where(is_token, starts[members][:, None] + np.arange(longest), 0)
        index[tokens[is_token]] = out + np.flatnonzero(is_token)
        out += is_token.size
        groups.append(_Group(len(members), longest, torch.from_numpy(tokens.ravel())))
    return tuple(groups), torch.from_numpy(index)


def padding(cu_seqlens: Sequence[int]) -> int:
    """Number of padding tokens that the CPU's attention computes for a pack: sequences of similar length are batched,
    and the shorter ones padded. On a GPU, and for a single sequence, there is no padding."""
    lengths = tuple(end - start for start, end in pairwise(cu_seqlens))
    if len(lengths) < 2:
        return 0
    groups, index = _groups(lengths)
    return sum(len(group.gather) for group in groups) - len(index)


def _grouped(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Float[Tensor, "T H d"]:
    """Attention of many sequences with few calls: those of similar length form a batch, padded on the right."""
    groups, index = _groups(tuple(lengths))
    (_, heads, d), kv_heads = q.shape, k.shape[1]
    repeats = heads // kv_heads
    outs = []
    for group in groups:
        shape = (group.sequences, group.longest)
        queries = q.index_select(0, group.gather).view(*shape, heads, d).transpose(1, 2)
        keys, values = (
            _repeat_heads(x.index_select(0, group.gather).view(*shape, kv_heads, d), repeats)
            for x in (k, v)
        )
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if group.longest <= MAX_EXPLICIT:
            future = torch.ones(group.longest, group.longest, dtype=torch.bool, device=q.device)
            out = explicit_attention(queries, keys, values, future.triu(1))
        else:
            out = _fused(queries, keys, values)
        outs.append(out.transpose(1, 2).reshape(-1, heads, d))
    return torch.cat(outs).index_select(0, index)


def _repeat_heads(x: Float[Tensor, "S t K d"], repeats: int) -> Float[Tensor, "S t H d"]:
    """Every kv head `repeats` times in a row (one copy; `repeat_interleave` takes longer)."""
    return x[:, :, :, None].expand(*x.shape[:3], repeats, x.shape[3]).flatten(2, 3)


def explicit_attention(
    q: Float[Tensor, "S H t d"],
    k: Float[Tensor, "S H t d"],
    v: Float[Tensor, "S H t d"],
    masked: Bool[Tensor, "*b n t"],
) -> Float[Tensor, "S H t d"]:
    """Softmax attention by its formula, softmax in float32; keys are masked where `masked` is True."""
    logits = _at_least_float32(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return logits.masked_fill(masked, -torch.inf).softmax(-1).to(v.dtype) @ v


def _fused(
    q: Float[Tensor, "S H t d"], k: Float[Tensor, "S H t d"], v: Float[Tensor, "S H t d"]
) -> Tensor:
    """torch's fused kernel, in float32: on the CPU its half-precision backward is slower."""
    return F.scaled_dot_product_attention(
        _at_least_float32(q), _at_least_float32(k), _at_least_float32(v), is_causal=True
    ).to(q.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@once
def _varlen() -> Any:
    """torch's variable-length flash attention, where this build has it with grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"enable_gqa", "window_size"} <= parameters.keys() else None


def varlen_supported(q: Tensor) -> bool:
    """Whether `varlen_attention` can take these queries: on CUDA, in half precision, with a torch that has it."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and _varlen() is not None


def varlen_attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "N K d"],
    v: Float[Tensor, "N K d"],
    query_starts: Int[Tensor, " S1"],
    key_starts: Int[Tensor, " S1"],
    max_queries: int,
    max_keys: int,
) -> Float[Tensor, "T H d"]:
    """Attention of a whole pack in one kernel; `query_starts` and `key_starts` are cu_seqlens of queries and keys
    (int32). `window_size=(-1, 0)` is a causal mask aligned at the bottom right."""
    kernel = _varlen()
    assert kernel is not None, "called without `varlen_supported`"
    out: Tensor = kernel(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        query_starts,
        key_starts,
        max_queries,
        max_keys,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return out


def cumulative_lengths(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " S1"]:
    """cu_seqlens of sequences of these lengths: where each starts in a pack, and where the last one ends."""
    total = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return total.to(device, non_blocking=True)
