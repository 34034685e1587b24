"""Pieces of the encoders: every path gives what the formula gives, whatever the shapes and however extreme."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.encoder import attention, widest

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
attends = pytest.mark.skipif(not widest(), reason="this CPU has no products of bfloat16")


def attended(
    qkv: list[Tensor], heads: int, queries: list[int], keys: list[int], distances: Tensor | None
) -> Tensor:
    """Attention as its formula says, in double precision."""
    outs = []
    for q, k, v in zip(*(t.double().split(queries) for t in qkv), strict=True):
        seen = keys[len(outs)]
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k[:seen], v[:seen]))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if distances is not None:
            between = torch.arange(seen) - torch.arange(q.shape[1])[:, None]
            scores = scores + distances.double()[:, between + distances.shape[1] // 2]
        outs.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(outs)


@attends
@settings(max_examples=40, deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(1, 140), st.integers(0, 9)), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    pairs=st.integers(1, 40),
    seed=st.integers(0, 99),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    far=st.booleans(),
)
def test_attention_is_that_of_the_formula(
    segments: list[tuple[int, int]], heads: int, pairs: int, seed: int, size: float, far: bool
) -> None:
    queries = [n for n, _ in segments]
    keys = [max(1, n - hidden) for n, hidden in segments]
    draw = torch.Generator().manual_seed(seed)
    qkv = [
        (size * torch.randn(sum(queries), heads * 2 * pairs, generator=draw)).bfloat16()
        for _ in range(3)
    ]
    distances = torch.randn(heads, 2 * max(queries) - 1, generator=draw) if far else None
    found = attention(*qkv, heads, queries, keys, distances)
    wanted = attended(qkv, heads, queries, keys, distances)
    # Shares and the result are rounded to bfloat16: two units in the last place of the largest value.
    assert (found.double() - wanted).abs().max() <= 2**-7 * qkv[2].abs().max()


@attends
def test_products_owe_their_scales_and_bias() -> None:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(50, 3 * 144, generator=draw).bfloat16()
    scale, bias = torch.rand(50, generator=draw), torch.randn(3 * 144, generator=draw)
    paid = (raw * scale[:, None] + bias).bfloat16()
    found, wanted = (
        attention(*t.split(144, 1), 2, [20, 30], [20, 28], scale=s, biases=b)
        for t, s, b in ((raw, scale, bias.split(144)), (paid, None, None))
    )
    assert (found.double() - wanted.double()).norm() < 0.01 * wanted.double().norm()


@attends
def test_a_segment_is_the_same_whatever_stands_beside_it() -> None:
    q, k, v = torch.randn(3, 200, 72, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = attention(q, k, v, 1, [70, 130], [70, 100])
    for part, seen in ((slice(0, 70), 70), (slice(70, 200), 100)):
        alone = attention(q[part], k[part], v[part], 1, [part.stop - part.start], [seen])
        assert torch.equal(alone, together[part])


@attends
def test_extreme_scores_are_shares() -> None:
    """One key takes all where scores are far apart, and all share where they are far from 0 together."""
    q = torch.full((3, 16), 100.0).bfloat16()
    k = torch.full((3, 16), 100.0).bfloat16()
    v = torch.tensor([1.0, 2.0, 6.0])[:, None].expand(3, 16).bfloat16()
    assert attention(q, k, v.contiguous(), 1, [3], [3]).unique().tolist() == [3.0]
    k[1] = -100
    k[2] = 99
    assert attention(q, k, v.contiguous(), 1, [3], [3]).unique().tolist() == [1.0]


@attends
def test_who_sees_nothing_gets_nothing() -> None:
    q, k, v = torch.ones(3, 5, 16).bfloat16()
    found = attention(q, k, v, 1, [2, 3], [0, 3])
    assert found.sum(1).tolist() == [0, 0, 16, 16, 16]
