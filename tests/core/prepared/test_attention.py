"""Attention to cached keys in pieces and CUDA's variable length, against the softmax formula."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from polyphi.model.attention import packed_attention
from polyphi.prepared import attention
from polyphi.prepared.attention import (
    continued_attention,
    last_token_attention,
    ragged_attention,
)
from tests.core.model.test_attention import ROUNDING, formula
from tests.fixtures.tensors import noise


def cut(cached: tuple[torch.Tensor, torch.Tensor], at: list[int]) -> list[tuple]:
    """Keys and values cut into pieces, as in a paged cache."""
    edges = [0, *at, len(cached[0])]
    return [tuple(x[a:b] for x in cached) for a, b in pairwise(edges)]


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
        assert (longest_q, longest_k) == (starts_q.diff().max(), starts_k.diff().max())
        assert (window_size, enable_gqa) == ((-1, 0), True)
        spans = zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)
        return torch.cat(
            [torch.from_numpy(formula(q[a:b], k[c:d], v[c:d])) for (a, b), (c, d) in spans]
        )

    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    monkeypatch.setattr(attention, "varlen_supported", lambda q: True)
    q, k, v = noise(8, 6, 8, seed=0), noise(18, 2, 8, seed=1), noise(18, 2, 8, seed=2)
    result = ragged_attention(q, k.split([7, 8, 3]), v.split([7, 8, 3]), [4, 1, 3])
    spans = [((0, 4), (0, 7)), ((4, 5), (7, 15)), ((5, 8), (15, 18))]
    expected = [formula(q[a:b], k[c:d], v[c:d]) for (a, b), (c, d) in spans]
    np.testing.assert_allclose(result.numpy(), np.concatenate(expected), atol=ROUNDING, rtol=0)
    result = attention.packed_attention(q, k[:8], v[:8], (0, 4, 5, 8))
    expected = packed_attention(q, k[:8], v[:8], (0, 4, 5, 8))
    np.testing.assert_allclose(result.numpy(), expected.numpy(), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, ROUNDING), (torch.bfloat16, 0.02)])
def test_ragged_attention_without_a_cache_is_packed_attention(dtype, rounding):
    """bfloat16: results of spread 1 differ by up to two units in the last place, 2^-8 each."""
    lengths = [5, 1, 14, 1]
    q, k, v = (noise(21, n, 8, seed=n).to(dtype) for n in (6, 2, 2))
    result = ragged_attention(q, k.split(lengths), v.split(lengths), lengths)
    expected = packed_attention(q, k, v, (0, 5, 6, 20, 21))
    torch.testing.assert_close(result, expected, atol=rounding, rtol=0)
