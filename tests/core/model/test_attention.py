"""Packed attention against the softmax formula."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from polyphi.model.attention import packed_attention, padding
from tests.fixtures.tensors import noise

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
