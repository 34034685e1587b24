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

`packed_attention` is for packs without a cache, `continued_attention` for one sequence that goes on: what is held of it
may lie in several pieces of memory. Both are loops of fused calls, which run anywhere; on CUDA in half precision a
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
    """Where keys and values of earlier tokens live. The model asks; the engine decides how they are stored."""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        bounds: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        """Keep the new keys (already rotated) and values of a pack, and attend: every new token sees what is held of
        its sequence, and the new ones up to itself."""
        ...


Piece = tuple[Float[Tensor, "n K d"], Float[Tensor, "n K d"]]
"""Keys and values of neighbouring tokens."""


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
) -> Float[Tensor, "T H d"]:
    """Grouped-query causal attention, sequence by sequence (`bounds` as in `Batch`): kv head j serves the query heads
    j H/K to (j + 1) H/K - 1, scores are scaled by 1/sqrt(d)."""
    lengths = [end - start for start, end in pairwise(bounds)]
    if not q.is_cuda and len(lengths) > 1:
        return _grouped(q, k, v, lengths)
    # `split` rather than slices: its gradient is one concatenation, a slice's is a pack full of zeros per sequence.
    return ragged_attention(q, k.split(lengths), v.split(lengths), lengths)


def ragged_attention(
    q: Float[Tensor, "T H d"],
    keys: Sequence[Float[Tensor, "n K d"]],
    values: Sequence[Float[Tensor, "n K d"]],
    lengths: Sequence[int],
) -> Float[Tensor, "T H d"]:
    """Sequences whose newest tokens, so many of each, attend to all of its own keys, the triangle at the bottom
    right."""
    if in_one_call(q):
        sizes = [len(k) for k in keys]
        starts = [starts_of(n, q.device) for n in (lengths, sizes)]
        k, v = torch.cat(list(keys)), torch.cat(list(values))
        return varlen_attention(q, k, v, starts[0], starts[1], max(lengths), max(sizes))
    parts = [_causal(*three) for three in zip(q.split(list(lengths)), keys, values, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def continued_attention(
    q: Float[Tensor, "t H d"],
    k: Float[Tensor, "t K d"],
    v: Float[Tensor, "t K d"],
    held: Sequence[Piece],
) -> Float[Tensor, "t H d"]:
    """The t newest tokens of one sequence against all that is held of it and, causally, each other. On the CPU every
    piece is attended where it lies, and the results are weighed by the sums of their exponentials: nothing is copied.
    """
    if not held:
        return _causal(q, k, v)
    if q.device.type != "cpu":
        keys, values = (
            torch.cat([*(piece[i] for piece in held), new]) for i, new in enumerate((k, v))
        )
        return _causal(q, keys, values)
    (t, heads, d), kv_heads = q.shape, k.shape[1]
    group = heads // kv_heads
    # Queries that see a whole piece can stand in one row: [1, K, H/K * t, d], and no key is repeated.
    rows = q.view(t, kv_heads, group, d).permute(1, 2, 0, 3)
    seen = [_attended(rows.reshape(1, kv_heads, group * t, d), *_heads_first(p)) for p in held]
    outs = [out.view(kv_heads, group, t, d) for out, _ in seen]
    logs = [log.view(kv_heads, group, t) for _, log in seen]
    new_keys, new_values = (
        x[0][:, None].expand(kv_heads, group, t, d) for x in _heads_first((k, v))
    )
    out, log = _attended(rows, new_keys, new_values, causal=True)
    # In float32 at least: a share of the whole is a number between 0 and 1.
    shares = torch.stack([*logs, log]).softmax(0)[..., None]
    mixed = (torch.stack([_wide(o) for o in (*outs, out)]) * shares).sum(0)
    return mixed.to(q.dtype).permute(2, 0, 1, 3).reshape(t, heads, d)


def last_token_attention(
    q: Float[Tensor, "1 H d"], held: Sequence[Piece]
) -> Float[Tensor, "1 H d"]:
    """The newest token of a sequence against pieces that hold all of it, itself included."""
    if len(held) == 1 or q.device.type != "cpu":
        keys, values = held[0] if len(held) == 1 else map(torch.cat, zip(*held, strict=True))
        return _causal(q, keys, values)
    (_, heads, d), kv_heads = q.shape, held[0][0].shape[1]
    rows = q.view(1, kv_heads, heads // kv_heads, d)
    outs, logs = zip(*(_attended(rows, *_heads_first(p)) for p in held), strict=True)
    shares = torch.stack(logs).softmax(0)[..., None]
    mixed = (torch.stack([_wide(o) for o in outs]) * shares).sum(0)
    return mixed.to(q.dtype).reshape(1, heads, d)


def _heads_first(piece: Piece) -> tuple[Tensor, Tensor]:
    """[n K d] twice as [1 K n d], without a copy."""
    keys, values = piece
    return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


def _attended(
    q: Float[Tensor, "B h t d"],
    k: Float[Tensor, "B h n d"],
    v: Float[Tensor, "B h n d"],
    causal: bool = False,
) -> tuple[Float[Tensor, "B h t d"], Float[Tensor, "B h t"]]:
    """Attention and the logarithm of each query's sum of exponentials, by torch's fused CPU kernel."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal
    )
    return found


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


SHORT = 256
"""Up to this length attention is written out: the fused CPU kernel's backward takes 2 to 16 times as long there
(18 to 64 tokens, bf16, one core); with 256 instead of 64 a step of 1,600 tokens of text takes 10 % less, one of
pictures 12 %."""


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


def in_one_call(q: Tensor) -> bool:
    """Whether `varlen_attention` can take these queries: on CUDA, in half precision, with a torch that has it."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and _varlen() is not None


def varlen_attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "N K d"],
    v: Float[Tensor, "N K d"],
    query_starts: Int[Tensor, " S1"],
    key_starts: Int[Tensor, " S1"],
    most_queries: int,
    most_keys: int,
) -> Float[Tensor, "T H d"]:
    """A whole pack in one kernel; starts (int32, from 0, one more than sequences) cut queries and keys.
    `window_size=(-1, 0)` is causal with the triangle at the bottom right."""
    kernel = _varlen()
    assert kernel is not None, "asked without `in_one_call`"
    out: Tensor = kernel(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        query_starts,
        key_starts,
        most_queries,
        most_keys,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return out


def starts_of(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " S1"]:
    """Where sequences of these lengths start in a pack, and where the last one ends."""
    total = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return total.to(device, non_blocking=True)
