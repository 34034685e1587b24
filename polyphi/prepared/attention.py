"""Attention in fewer or faster calls than `model/attention.py`: a whole pack in one CUDA kernel, and keys and values
that lie in several pieces of memory.

`packed_attention` is for packs without a cache, `ragged_attention` for sequences with more keys than queries, and
`continued_attention` for one sequence with cached keys and values in pieces. On CUDA in half precision a whole pack is
one call of `torch.nn.attention.varlen` (`varlen_attention`), on a CPU one of ours; elsewhere they are loops of fused
calls.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.kernels import training_attention
from polyphi.model import attention
from polyphi.model.attention import at_least_float32

Piece = tuple[Float[Tensor, "_ K d"], Float[Tensor, "_ K d"]]
"""Keys and values of consecutive tokens."""


def packed_attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    cu_seqlens: Sequence[int],
) -> Float[Tensor, "T H d"]:
    """`model.attention.packed_attention`, on CUDA in one kernel where torch has it, on a CPU in ours."""
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    if kernels.plain(q, k, v):
        # A copy of the values, so that the projection's output, of which they are a part, needn't be stored.
        return training_attention.attention(q, k, v.contiguous(), lengths, causal=True)
    if not varlen_supported(q):
        return attention.packed_attention(q, k, v, cu_seqlens)
    starts = cumulative_lengths(lengths, q.device)
    return varlen_attention(q, k, v, starts, starts, max(lengths), max(lengths))


def ragged_attention(
    q: Float[Tensor, "T H d"],
    keys: Sequence[Float[Tensor, "_ K d"]],
    values: Sequence[Float[Tensor, "_ K d"]],
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
    combined = _combined([*outputs, output], [*log_sums, log_sum])
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
    return _combined(outs, logs).to(q.dtype).reshape(1, heads, d)


def _causal(
    q: Float[Tensor, "t H d"], k: Float[Tensor, "n K d"], v: Float[Tensor, "n K d"]
) -> Float[Tensor, "t H d"]:
    """`causal_attention`; a single token attends to all keys, so the query heads of a group can take the dimension of
    the tokens."""
    (t, heads, d), kv_heads = q.shape, k.shape[1]
    if t > 1:
        return attention.causal_attention(q, k, v)
    rows = q.view(1, kv_heads, heads // kv_heads, d)
    return F.scaled_dot_product_attention(rows, *_heads_first((k, v))).reshape(1, heads, d)


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


def _combined(
    outputs: Sequence[Float[Tensor, "B h t d"]], log_sums: Sequence[Float[Tensor, "B h t"]]
) -> Float[Tensor, "B h t d"]:
    """The attention to several pieces, from that to each. In float32 at least: the weights are numbers between 0 and
    1."""
    weights = torch.stack(list(log_sums)).softmax(0)[..., None]
    return (torch.stack([at_least_float32(output) for output in outputs]) * weights).sum(0)


@cache
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
    tensors = (x.contiguous() for x in (q, k, v))
    layout = (query_starts, key_starts, max_queries, max_keys)
    out: Tensor = kernel(*tensors, *layout, window_size=(-1, 0), enable_gqa=True)
    return out


def cumulative_lengths(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " S1"]:
    """cu_seqlens of sequences of these lengths: where each starts in a pack, and where the last one ends."""
    total = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return total.to(device, non_blocking=True)
