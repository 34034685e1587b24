"""Attention with gradients within the sequences of a pack (training_attention.cpp): without padding, probabilities are
computed again in the backward pass.

>>> y = attention(q, k, v, lengths, causal=True)            # [T H d] from q [T H d], k and v [T K d]
>>> y = attention(q, k, v, lengths, distances=bias)         # bidirectional, with a bias by key - query
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from polyphi.kernels.native import count, fake, function, number, plain, pointer, pool

_INPUTS = (number, number, *[pointer] * 7)
_SIZES = (count, count, count, count, count, number, pointer, pointer)


@cache
def _functions() -> tuple[Callable[..., None], Callable[..., None]]:
    forward = function("polyphi_self_attention", *_INPUTS, *_SIZES, pointer, pointer, number)
    backward = function(
        "polyphi_self_attention_backward", *_INPUTS, *_SIZES, *[pointer] * 5, pointer, number
    )
    return forward, backward


def attention(
    q: Float[Tensor, "T H d"],
    k: Float[Tensor, "T K d"],
    v: Float[Tensor, "T K d"],
    lengths: Sequence[int],
    *,
    key_lengths: Sequence[int] | None = None,
    causal: bool = False,
    distances: Float[Tensor, "H D"] | None = None,
    isa: int = -1,
) -> Float[Tensor, "T H d"]:
    """Attention of each sequence of `lengths` to itself, logits scaled by 1/sqrt(d): kv head j serves the query heads
    j H/K to (j + 1) H/K - 1. Where not `causal`, the keys of a sequence may be only its first `key_lengths` rows.
    `distances` [H, 2 L - 1] in float32, L at least the longest sequence, are added to the logits by key - query +
    L - 1. Sums are in float32; a sequence's result and gradients depend on no other one. `isa` is for tests: an index
    in `PATHS`. Takes `plain` tensors alone."""
    assert plain(q, k, v) and sum(lengths) == len(q) == len(k) == len(v), (q.dtype, lengths)
    assert distances is None or distances.shape[1] >= 2 * max(lengths) - 1, distances.shape
    assert key_lengths is None or not causal
    counts = tuple(lengths), tuple(key_lengths or lengths)
    y: Tensor = _Attention.apply(q, k, v, distances, counts, causal, isa)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        distances: Tensor | None,
        counts: tuple[tuple[int, ...], tuple[int, ...]],
        causal: bool,
        isa: int,
    ) -> Tensor:
        q, k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q, k, v))
        bias = None if distances is None else distances.detach().float().contiguous()
        sums, y = q.new_empty(q.shape[:2], dtype=torch.float32), q.new_empty(q.shape)
        ctx.save_for_backward(q, k, v, bias, sums)
        ctx.call = (counts, causal, isa)
        if not fake(q):
            arguments, _alive = _arguments(q, k, v, bias, sums, *ctx.call)
            _functions()[0](*arguments, y.data_ptr(), pool(), torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, sums = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        by_sequence = None if bias is None else bias.new_zeros(len(ctx.call[0][0]), *bias.shape)
        dy = dy.contiguous()
        if not fake(q):
            arguments, _alive = _arguments(q, k, v, bias, sums, *ctx.call)
            outputs = [t.data_ptr() for t in (dy, dq, dk, dv)]
            to = None if by_sequence is None else by_sequence.data_ptr()
            _functions()[1](*arguments, *outputs, to, pool(), torch.get_num_threads())
        return dq, dk, dv, None if by_sequence is None else by_sequence.sum(0), None, None, None


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sums: Tensor,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    causal: bool,
    isa: int,
) -> tuple[tuple[int | None, ...], tuple[Tensor, ...]]:
    """The arguments that both passes share, and tensors that must live as long as the call."""
    counts, key_counts = map(torch.tensor, lengths)
    starts, strides = counts.cumsum(0) - counts, torch.tensor([x.stride(0) for x in (q, k, v)])
    longest = 0 if bias is None else (bias.shape[1] + 1) // 2
    tensors = (q, k, v, strides, starts, counts, key_counts)
    return (
        isa,
        int(q.dtype == torch.bfloat16),
        *(t.data_ptr() for t in tensors),
        len(counts),
        q.shape[1],
        k.shape[1],
        q.shape[2],
        longest,
        int(causal),
        None if bias is None else bias.data_ptr(),
        sums.data_ptr(),
    ), tensors
