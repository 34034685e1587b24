"""Packed attention against the softmax formula, with and without cached keys."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from polyphi.model import attention
from polyphi.model.attention import (
    continued_attention,
    last_token_attention,
    packed_attention,
    padding,
    varlen_attention,
)

# float32 against float64 formulas: measured 6e-7 on outputs of spread 1.
ROUNDING = 5e-6


def formula(q, k, v) -> np.ndarray:
    """[t H d] for the t newest of n tokens; query head h uses kv head h // (H / K)."""
    q, k, v = (x.detach().double().numpy() for x in (q, k, v))
    (t, heads, d), n = q.shape, len(k)
    out = np.empty_like(q)
    for h in range(heads):
        shared = h // (heads // k.shape[1])
        for i in range(t):
            seen = n - t + i + 1
            scores = k[:seen, shared] @ q[i, h] / np.sqrt(d)
            chances = np.exp(scores - scores.max())
            out[i, h] = chances / chances.sum() @ v[:seen, shared]
    return out


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(cached: tuple[torch.Tensor, torch.Tensor], at: list[int]) -> list[tuple]:
    """Keys and values cut into pieces, as in a paged cache."""
    edges = [0, *at, len(cached[0])]
    return [tuple(x[a:b] for x in cached) for a, b in pairwise(edges)]


@pytest.mark.parametrize("heads, kv_heads", [(6, 2), (4, 4), (3, 1)])
def test_sequences_see_themselves_only(heads, kv_heads):
    cu_seqlens = (0, 5, 6, 20, 21)
    q, k, v = (
        noise(21, heads, 8, seed=0),
        noise(21, kv_heads, 8, seed=1),
        noise(21, kv_heads, 8, seed=2),
    )
    result = packed_attention(q, k, v, cu_seqlens)
    expected = np.concatenate([formula(q[a:b], k[a:b], v[a:b]) for a, b in pairwise(cu_seqlens)])
    np.testing.assert_allclose(result.numpy(), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("new", [1, 3, 70])
@pytest.mark.parametrize("at", [[], [5], [1, 4, 100]])
def test_a_continued_sequence_attends_to_all_cached_tokens(new, at):
    """The causal mask is aligned at the bottom right, wherever the pieces are cut."""
    cached = noise(130, 2, 8, seed=3), noise(130, 2, 8, seed=4)
    q, k, v = noise(new, 6, 8, seed=0), noise(new, 2, 8, seed=1), noise(new, 2, 8, seed=2)
    every = [torch.cat([old, own]) for old, own in zip(cached, (k, v), strict=True)]
    expected = formula(q, *every)
    result = continued_attention(q, k, v, cut(cached, at))
    np.testing.assert_allclose(result.numpy(), expected, atol=ROUNDING, rtol=0)
    if new == 1:
        result = last_token_attention(q, cut(tuple(every), at))
        np.testing.assert_allclose(result.numpy(), expected, atol=ROUNDING, rtol=0)


def test_a_piece_with_large_logits_outweighs_the_others():
    """Sums of exponentials that float32 can't hold: only their logarithms are compared."""
    keys = torch.cat([noise(20, 2, 8, seed=1), 300 * noise(20, 2, 8, seed=2)])
    values, q = noise(40, 2, 8, seed=3), noise(1, 6, 8, seed=4)
    result = last_token_attention(q, cut((keys, values), [7, 20]))
    np.testing.assert_allclose(result.numpy(), formula(q, keys, values), atol=10 * ROUNDING, rtol=0)


def test_the_varlen_kernel_gets_equal_arguments(monkeypatch):
    """The CUDA path with its kernel replaced by the formula: arguments in the layout that `varlen_attn` documents."""

    def kernel(q, k, v, *layout, window_size, enable_gqa):
        starts_q, starts_k, longest_q, longest_k = layout
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert (longest_q, longest_k, window_size, enable_gqa) == (4, 8, (-1, 0), True)
        spans = zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)
        return torch.cat(
            [torch.from_numpy(formula(q[a:b], k[c:d], v[c:d])) for (a, b), (c, d) in spans]
        )

    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    queries, keys = (torch.tensor(x, dtype=torch.int32) for x in ((0, 4, 5, 8), (0, 7, 15, 18)))
    q, k, v = noise(8, 6, 8, seed=0), noise(18, 2, 8, seed=1), noise(18, 2, 8, seed=2)
    result = varlen_attention(q, k, v, queries, keys, 4, 8)
    spans = [((0, 4), (0, 7)), ((4, 5), (7, 15)), ((5, 8), (15, 18))]
    expected = [formula(q[a:b], k[c:d], v[c:d]) for (a, b), (c, d) in spans]
    np.testing.assert_allclose(result.numpy(), np.concatenate(expected), atol=ROUNDING, rtol=0)


def test_gradients():
    cu_seqlens = (0, 3, 4, 9)
    inputs = [noise(9, n, 4, seed=i).double().requires_grad_() for i, n in enumerate((4, 2, 2))]
    assert torch.autograd.gradcheck(lambda *x: packed_attention(*x, cu_seqlens), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_its_type(dtype):
    q, k, v = (noise(4, n, 8, seed=0).to(dtype) for n in (4, 2, 2))
    assert packed_attention(q, k, v, (0, 3, 4)).dtype == dtype


@pytest.mark.parametrize(
    "lengths, padded", [((10, 10, 40), 0), ((10, 14), 4), ((14, 10, 60), 4), ((9,), 0)]
)
def test_padding_counts_padding_tokens(lengths, padded):
    assert padding((0, *np.cumsum(lengths).tolist())) == padded
