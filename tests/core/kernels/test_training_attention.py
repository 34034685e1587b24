"""Attention with gradients: every path equals the formula and its gradients, whatever else is in the pack."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels import native
from polyphi.kernels.training_attention import attention
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
every_path = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Largest difference, as a share of the largest value. Measured: 8e-7; 3.5e-3, one rounding of the result; 5.3e-3 with
AVX-512 BF16, where probabilities and gradients of logits are rounded, too."""


def by_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    key_lengths: list[int],
    causal: bool,
    distances: Tensor | None,
) -> Tensor:
    group, outs = q.shape[1] // k.shape[1], []
    for count, *parts in zip(key_lengths, *(x.split(lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1) for x in parts)
        key, value = key[:, :count], value[:, :count]
        key, value = (x.repeat_interleave(group, 0) for x in (key, value))
        logits = query @ key.transpose(1, 2) / math.sqrt(q.shape[2])
        between = torch.arange(count) - torch.arange(query.shape[1])[:, None]
        if distances is not None:
            logits = logits + distances[:, between + distances.shape[1] // 2]
        if causal:
            logits = logits.masked_fill(between > 0, -torch.inf)
        outs.append((logits.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outs)


def noise(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_()


def assert_near(y: Tensor | None, expected: Tensor | None, error: float) -> None:
    assert y is not None and expected is not None
    largest = float(expected.detach().abs().max())
    assert (y.detach().double() - expected.detach()).abs().max() <= error * max(largest, 1e-3)


@every_path
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    heads=st.sampled_from([(6, 2), (4, 4), (3, 1)]),
    d=st.sampled_from([8, 16, 20, 32, 36, 72, 128]),
    visible=st.sampled_from(["all", "earlier", "first"]),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_it_equals_the_formula(
    path: int,
    lengths: list[int],
    heads: tuple[int, int],
    d: int,
    visible: str,
    biased: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    count, (many, few) = sum(lengths), heads
    # Queries, keys and values as a decoder's projection has them: parts of the same rows.
    qkv = noise(count, many + 2 * few, d, dtype=dtype, seed=seed)
    distances = noise(many, 2 * 80 - 1, dtype=torch.float32, seed=seed) if biased else None
    slopes = noise(count, many, d, dtype=dtype, seed=seed + 1).detach()
    parts = qkv.split((many, few, few), dim=1)
    keys = [max(1, n - seed % 20) for n in lengths] if visible == "first" else lengths
    options: dict[str, Any] = {"causal": True} if visible == "earlier" else {"key_lengths": keys}
    y = attention(*parts, lengths, **options, distances=distances, isa=path)
    y.backward(slopes)
    exact = qkv.detach().double().requires_grad_()
    exact_distances = None if distances is None else distances.detach().double().requires_grad_()
    split = exact.split((many, few, few), 1)
    expected = by_formula(*split, lengths, keys, visible == "earlier", exact_distances)
    expected.backward(slopes.double())
    assert y.dtype == dtype
    assert_near(y, expected, ERRORS[dtype])
    assert_near(qkv.grad, exact.grad, ERRORS[dtype])
    if distances is not None and exact_distances is not None:
        assert_near(distances.grad, exact_distances.grad, 2e-6)


def test_without_products_of_bfloat16_it_equals_the_formula() -> None:
    """The path of an AVX-512 CPU without them; on others the limit changes nothing."""
    cap = os.environ.get("POLYPHI_MAX_CPU_ISA", "NEON_I8MM").upper()
    parts = [noise(50, h, 36, dtype=torch.bfloat16, seed=h) for h in (4, 2, 2)]
    native.limit("AVX512_VNNI")
    try:
        y = attention(*parts, [20, 30], causal=True)
        y.square().sum().backward()
    finally:
        native.limit(cap)
    exact = [x.detach().double().requires_grad_() for x in parts]
    expected = by_formula(*exact, [20, 30], [20, 30], True, None)
    expected.square().sum().backward()
    assert_near(y, expected, ERRORS[torch.bfloat16])
    for x, of in zip(parts, exact, strict=True):
        assert_near(x.grad, of.grad, ERRORS[torch.bfloat16])


def test_a_sequence_depends_on_no_other_one() -> None:
    lengths = [5, 41, 1, 64, 12]
    whole = [noise(sum(lengths), h, 32, dtype=torch.float32, seed=h) for h in (6, 2, 2)]
    y = attention(*whole, lengths, causal=True)
    y.square().sum().backward()
    for s, parts in enumerate(zip(*(x.detach().split(lengths) for x in whole), strict=True)):
        alone = [x.clone().requires_grad_() for x in parts]
        single = attention(*alone, lengths[s : s + 1], causal=True)
        single.square().sum().backward()
        assert single.equal(y.split(lengths)[s])
        for x, packed in zip(alone, whole, strict=True):
            assert x.grad is not None and packed.grad is not None
            assert x.grad.equal(packed.grad.split(lengths)[s])


def test_the_number_of_threads_changes_nothing() -> None:
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        parts = [noise(120, 4, 36, dtype=torch.bfloat16, seed=s) for s in range(3)]
        distances = noise(4, 119, dtype=torch.float32, seed=5)
        attention(*parts, [60, 20, 40], distances=distances).float().square().sum().backward()
        results.append([x.grad for x in (*parts, distances)])
    torch.set_num_threads(threads)
    for grads in results[1:]:
        assert all(a.equal(b) for a, b in zip(grads, results[0], strict=True))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what is mapped")
def test_memory_grows_with_a_sequence_not_with_its_square() -> None:
    """Kernels keep their memory: 12,000 tokens squared would be 576 MB, twice."""

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    q, k, v = (noise(12_000, 1, 8, dtype=torch.float32, seed=s) for s in range(3))
    before = resident()
    attention(q, k, v, [12_000], causal=True).sum().backward()
    assert resident() - before < 100 << 20


@every_path
def test_large_logits_overflow_nothing(path: int) -> None:
    q, k, v = (noise(40, 2, 16, dtype=torch.float32, seed=s) for s in range(3))
    y = attention(q * 1e4, k * 1e4, v, [30, 10], causal=True, isa=path)
    y.sum().backward()
    assert y.isfinite().all() and all(
        x.grad is not None and x.grad.isfinite().all() for x in (q, v)
    )
    wide = [x.detach().double() * scale for x, scale in ((q, 1e4), (k, 1e4), (v, 1))]
    assert_near(y, by_formula(*wide, [30, 10], [30, 10], True, None), 1e-5)
