"""Packed attention against softmax written out, with and without earlier keys."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from polyphi.model.attention import _one_call, packed_attention, padding

# float32 against float64 formulas: measured 6e-7 on outputs of spread 1.
ROUNDING = 5e-6


def formula(q, k, v) -> np.ndarray:
    """[t H d] for the t newest of n tokens; query head h listens to kv head h // (H / K)."""
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


class Held:
    """A cache that already holds so many tokens per sequence."""

    def __init__(self, counts, kv_heads, d):
        self.held = [
            (noise(n, kv_heads, d, seed=10 + i), noise(n, kv_heads, d, seed=20 + i))
            for i, n in enumerate(counts)
        ]
        self.asked = []

    def extend(self, layer, k, v, lengths):
        self.asked.append((layer, lengths))
        pairs = zip(self.held, k.split(lengths), v.split(lengths), strict=True)
        both = [(torch.cat([b[0], key]), torch.cat([b[1], value])) for b, key, value in pairs]
        return [key for key, _ in both], [value for _, value in both]


@pytest.mark.parametrize("heads, kv_heads", [(6, 2), (4, 4), (3, 1)])
def test_sequences_see_themselves_only(heads, kv_heads):
    bounds = (0, 5, 6, 20, 21)
    q, k, v = (
        noise(21, heads, 8, seed=0),
        noise(21, kv_heads, 8, seed=1),
        noise(21, kv_heads, 8, seed=2),
    )
    found = packed_attention(q, k, v, bounds)
    expected = np.concatenate([formula(q[a:b], k[a:b], v[a:b]) for a, b in pairwise(bounds)])
    np.testing.assert_allclose(found.numpy(), expected, atol=ROUNDING, rtol=0)


def test_with_a_cache_the_triangle_sits_at_the_bottom_right():
    bounds, cache = (0, 4, 5, 8), Held((3, 7, 0), 2, 8)
    q, k, v = noise(8, 6, 8, seed=0), noise(8, 2, 8, seed=1), noise(8, 2, 8, seed=2)
    found = packed_attention(q, k, v, bounds, cache=cache, layer=3)
    assert cache.asked == [(3, [4, 1, 3])]
    keys, values = cache.extend(3, k, v, [4, 1, 3])
    expected = [formula(q[a:b], keys[s], values[s]) for s, (a, b) in enumerate(pairwise(bounds))]
    np.testing.assert_allclose(found.numpy(), np.concatenate(expected), atol=ROUNDING, rtol=0)


def test_the_single_kernel_gets_the_same_question():
    """The CUDA path with its kernel replaced by the formula: arguments in the layout that `varlen_attn` documents."""

    def kernel(q, k, v, *layout, window_size, enable_gqa):
        starts_q, starts_k, longest_q, longest_k = layout
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert (longest_q, longest_k, window_size, enable_gqa) == (4, 8, (-1, 0), True)
        spans = zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)
        return torch.cat(
            [torch.from_numpy(formula(q[a:b], k[c:d], v[c:d])) for (a, b), (c, d) in spans]
        )

    bounds, cache = (0, 4, 5, 8), Held((3, 7, 0), 2, 8)
    q, k, v = noise(8, 6, 8, seed=0), noise(8, 2, 8, seed=1), noise(8, 2, 8, seed=2)
    found = _one_call(kernel, q, *cache.extend(0, k, v, [4, 1, 3]), [4, 1, 3])
    expected = packed_attention(q, k, v, bounds, cache=cache)
    torch.testing.assert_close(found.float(), expected, atol=ROUNDING, rtol=0)


def test_gradients():
    bounds = (0, 3, 4, 9)
    inputs = [noise(9, n, 4, seed=i).double().requires_grad_() for i, n in enumerate((4, 2, 2))]
    assert torch.autograd.gradcheck(lambda *x: packed_attention(*x, bounds), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_its_type(dtype):
    q, k, v = (noise(4, n, 8, seed=0).to(dtype) for n in (4, 2, 2))
    assert packed_attention(q, k, v, (0, 3, 4)).dtype == dtype


@pytest.mark.parametrize(
    "lengths, vain", [((10, 10, 40), 0), ((10, 14), 4), ((14, 10, 60), 4), ((9,), 0)]
)
def test_padding_is_what_is_computed_in_vain(lengths, vain):
    assert padding((0, *np.cumsum(lengths).tolist())) == vain
