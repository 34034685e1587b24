"""Kernels of 4 and 8 bits: every path equals the formula for any shapes and extreme values."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.paths import here
from torch import Tensor

from polyphi import kernels
from polyphi.kernels import native
from polyphi.kernels.blocks import swiglu
from polyphi.kernels.linear import (
    GROUP,
    UNPACK_MIN_TOKENS,
    Adapter,
    Int4Weight,
    linear,
    pack4,
    pack8,
    unpack4,
    unpack8,
)

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


UNPACKING = ("AVX-512 VNNI", "AVX-VNNI", "NEON i8mm")
PATHS = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)


def random_four(outputs: int, inputs: int, seed: int) -> Int4Weight:
    draw = torch.Generator().manual_seed(seed)
    pairs = (outputs, inputs // GROUP)
    return Int4Weight(
        torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=draw),
        *(torch.randint(0, 256, pairs, dtype=torch.uint8, generator=draw) for _ in range(2)),
    )


def random_eight(outputs: int, inputs: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=draw)


def dequantized(weight: Int4Weight | Tensor, row: Tensor) -> Tensor:
    """The weight in double precision."""
    if isinstance(weight, Tensor):
        return weight.double() * row.double()[:, None]
    groups = weight.q.double().view(*weight.s.shape, GROUP)
    w = (groups - weight.z.double()[..., None] / 16) * weight.s.double()[..., None]
    return w.view(weight.q.shape) * row.double()[:, None]


def unpacked(weight: Int4Weight) -> tuple[Tensor, Tensor]:
    """A weight in 4 bits unpacked to int8, as used for many tokens, and the factor of its rows. (Computed in 256ths
    with truncation, as in the kernels.)"""
    s, z = weight.s.float(), weight.z.float()
    largest = (s * torch.maximum(z, 240 - z)).amax(1, keepdim=True)
    # A number divided by a tensor would be computed by the reciprocal, which rounds twice.
    factor = torch.full_like(largest, 127 * 256) / largest.clamp(min=1)
    step = (16 * (s * factor) + 0.5).int()[..., None]
    none = (128.5 * 256 - z * (s * factor)).int()[..., None]
    q = weight.q.int().view(*s.shape, GROUP)
    eight = ((q * step + none) >> 8) - 128
    return eight.view(weight.q.shape).to(torch.int8), largest[:, 0] / (127 * 16)


def multiplied(weight: Int4Weight | Tensor, row: Tensor, tokens: int, path: int) -> Tensor:
    """The weight that a path uses for so many tokens, in double precision."""
    if (
        isinstance(weight, Int4Weight)
        and tokens >= UNPACK_MIN_TOKENS
        and kernels.PATHS[path] in UNPACKING
    ):
        eight, factor = unpacked(weight)
        return dequantized(eight, row * factor)
    return dequantized(weight, row)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as integers with a largest magnitude of 127 per token, and the scale of each token."""
    step = (x.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    return (x.float() * (1 / step)).round(), step


def activations(x: Tensor) -> Tensor:
    """The rounded activations, in double precision."""
    q, step = rounded(x)
    return q.double() * step.double()


def low_rank(x: Tensor, a: Tensor, a_row: Tensor) -> Tensor:
    """A x of an adapter, before its second product: integer sums, times the float32 factors of token and row."""
    q, step = rounded(x)
    return (q.double() @ a.double().t()).float() * (a_row * step)


@PATHS
@settings(max_examples=40)
@given(
    bits=st.sampled_from([4, 8]),
    tokens=st.integers(1, 19) | st.integers(UNPACK_MIN_TOKENS - 2, UNPACK_MIN_TOKENS + 9),
    outputs=st.integers(1, 80),
    inputs=st.integers(1, 200),
    rank=st.integers(0, 40),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
    half=st.booleans(),
)
def test_products_equal_the_formula(
    path: int,
    bits: int,
    tokens: int,
    outputs: int,
    inputs: int,
    rank: int,
    seed: int,
    size: float,
    half: bool,
) -> None:
    if bits == 4:
        inputs = GROUP * -(-inputs // GROUP)
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed)
    packed = pack4(weight) if isinstance(weight, Int4Weight) else pack8(weight)
    draw = torch.Generator().manual_seed(seed + 1)
    row = torch.rand(outputs, generator=draw) + 0.1
    x = size * torch.randn(tokens, inputs, generator=draw)
    x = x.bfloat16() if half else x
    x[tokens // 2] = 0
    x[-1, :5] *= 1000
    expected = activations(x) @ multiplied(weight, row, tokens, path).t()
    # The sums of up to 7 groups are added in float32: an error of some units in the last place of the largest possible
    # result. bfloat16 rounds the result.
    most = activations(x).abs() @ dequantized(weight, row).abs().t() + 1e-30
    adapter = None
    if rank:
        a, b = random_eight(rank, inputs, seed + 2), random_eight(outputs, rank, seed + 3)
        a_row, b_row = (torch.rand(n, generator=draw) for n in (rank, outputs))
        adapter = Adapter(pack8(a), a_row, pack8(b), b_row, -0.5)
        low = activations(low_rank(x, a, a_row))
        expected -= 0.5 * low @ dequantized(b, b_row).t()
        most += low.abs() @ dequantized(b, b_row).abs().t()
    y = linear(x, packed, row, bits=bits, adapter=adapter, isa=path)
    assert y.dtype == x.dtype
    allowed = 5e-3 if half else 2e-6
    assert ((y.double() - expected).abs() / (most + expected.abs())).max() < allowed
    onto = size * torch.randn(tokens, outputs, generator=draw).to(x.dtype)
    total = linear(x, packed, row, bits=bits, adapter=adapter, onto=onto, isa=path)
    assert torch.equal(total, onto + y)


@contextmanager
def without_amx() -> Iterator[None]:
    cap = os.environ.get("POLYPHI_MAX_CPU_ISA", "NEON_I8MM").upper()
    native.limit("AVX512_BF16" if native.amx() else cap)
    assert not native.amx()
    yield
    native.limit(cap)


@settings(max_examples=60)
@given(
    bits=st.sampled_from([4, 8]),
    tokens=st.integers(14, 70)
    | st.integers(UNPACK_MIN_TOKENS, UNPACK_MIN_TOKENS + 9)
    | st.integers(260, 300),
    outputs=st.integers(1, 80),
    inputs=st.sampled_from([32, 64, 96, 128, 192, 200, 320]),
    rank=st.sampled_from([0, 5, 64]),
    seed=st.integers(0, 99),
    gated=st.booleans(),
)
def test_amx_adds_the_same_integers(
    bits: int, tokens: int, outputs: int, inputs: int, rank: int, seed: int, gated: bool
) -> None:
    """On a CPU without AMX both sides are the same kernels."""
    if bits == 4:
        inputs = GROUP * -(-inputs // GROUP)
    outputs = 64 * -(-outputs // 64) if gated else outputs
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed)
    packed = pack4(weight) if isinstance(weight, Int4Weight) else pack8(weight)
    draw = torch.Generator().manual_seed(seed)
    row, a_row, b_row = (torch.rand(n, generator=draw) for n in (outputs, rank, outputs))
    x = torch.randn(tokens, inputs, generator=draw).bfloat16()
    x[0, 0], x[-1, 0] = 1e4, torch.nan
    adapter = None
    if rank:
        a, b = random_eight(rank, inputs, seed + 2), random_eight(outputs, rank, seed + 3)
        adapter = Adapter(pack8(a), a_row, pack8(b), b_row, -0.5)
    result = linear(x, packed, row, bits=bits, adapter=adapter, gated=gated)
    with without_amx():
        expected = linear(x, packed, row, bits=bits, adapter=adapter, gated=gated)
    assert result.equal(expected) or torch.equal(result.nan_to_num(7), expected.nan_to_num(7))


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 19, UNPACK_MIN_TOKENS + 5])
def test_a_gated_product_equals_swiglu_of_the_product(
    path: int, dtype: torch.dtype, bits: int, tokens: int
) -> None:
    x, row = torch.randn(tokens, 96, dtype=dtype), torch.rand(192) / 100
    packed = pack4(random_four(192, 96, 0)) if bits == 4 else pack8(random_eight(192, 96, 0))
    factors = pack8(random_eight(7, 96, 1)), row[:7], pack8(random_eight(192, 7, 2)), row
    for adapter in (None, Adapter(*factors, 0.5)):
        product = linear(x, packed, row, bits=bits, adapter=adapter, isa=path)
        y = linear(x, packed, row, bits=bits, adapter=adapter, gated=True, isa=path)
        assert torch.equal(y, swiglu(product, path))


def test_the_largest_sums_fit() -> None:
    """All weights and activations at the ends of their ranges, with as many inputs as the model has."""
    x = torch.ones(3, 8192)
    x[1] = -1
    x[2, ::2] = -1
    for q, z in ((0, 255), (15, 0)):
        weight = Int4Weight(
            *(
                torch.full((32, n), v, dtype=torch.uint8)
                for n, v in ((8192, q), (256, 255), (256, z))
            )
        )
        for path in here():
            y = linear(x, pack4(weight), torch.ones(32), bits=4, isa=path)
            torch.testing.assert_close(
                y.double(), x.double() @ dequantized(weight, torch.ones(32)).t(), rtol=1e-5, atol=10
            )
    for end in (-127, 127):
        eight = torch.full((32, 8192), end, dtype=torch.int8)
        for path in here():
            y = linear(x, pack8(eight), torch.ones(32), bits=8, isa=path)
            torch.testing.assert_close(
                y.double(), x.double() @ eight.double().t(), rtol=1e-6, atol=1e-2
            )


@pytest.mark.parametrize("bits", [4, 8])
def test_paths_agree(bits: int) -> None:
    x, row = torch.randn(11, 3072), torch.rand(64)
    packed = pack4(random_four(64, 3072, 0)) if bits == 4 else pack8(random_eight(64, 3072, 0))
    results = [linear(x, packed, row, bits=bits, isa=path) for path in here()]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "bits, tokens, alone", [(4, UNPACK_MIN_TOKENS - 1, 1), (4, 300, UNPACK_MIN_TOKENS), (8, 300, 1)]
)
def test_a_token_does_not_depend_on_its_neighbours(bits: int, tokens: int, alone: int) -> None:
    x, row = torch.randn(tokens, 96), torch.rand(48)
    packed = pack4(random_four(48, 96, 0)) if bits == 4 else pack8(random_eight(48, 96, 0))
    x[3] *= 1e4
    factors = pack8(random_eight(7, 96, 1)), torch.rand(7), pack8(random_eight(48, 7, 2)), row
    for adapter in (None, Adapter(*factors, 0.5)):
        batched = linear(x, packed, row, bits=bits, adapter=adapter)
        for i in (0, 3, 4, 19, tokens - alone):
            some = linear(x[i : i + alone], packed, row, bits=bits, adapter=adapter)
            assert torch.equal(some, batched[i : i + alone])


@PATHS
def test_unpacking_4_bits_adds_no_more_error_than_rounding_to_8(path: int) -> None:
    weight, row, x = random_four(64, 3072, 0), torch.rand(64), torch.randn(UNPACK_MIN_TOKENS, 3072)
    y = linear(x, pack4(weight), row, bits=4, isa=path)
    expected = activations(x) @ dequantized(weight, row).t()
    error = ((y - expected).norm() / expected.norm()).item()
    eight = dequantized(weight, row)
    step = eight.abs().amax(1, keepdim=True) / 127
    nearest = activations(x) @ ((eight / step).round() * step).t()
    assert error < 1.1 * ((nearest - expected).norm() / expected.norm()).item()


def test_extreme_panels_of_4_bits_are_unpacked() -> None:
    """Scales of 0, the smallest and the largest, zeros at both ends: no value exceeds the range of int8."""
    for s, z, q in ((0, 0, 15), (1, 255, 0), (255, 0, 15), (255, 255, 0), (255, 240, 15)):
        fills = ((64, q), (2, s), (2, z))
        weight = Int4Weight(*(torch.full((32, n), v, dtype=torch.uint8) for n, v in fills))
        weight.s[:, 1] = 255 - s
        x = torch.randn(UNPACK_MIN_TOKENS, 64)
        for path in here():
            y = linear(x, pack4(weight), torch.ones(32), bits=4, isa=path)
            expected = (
                activations(x) @ multiplied(weight, torch.ones(32), UNPACK_MIN_TOKENS, path).t()
            )
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_nan_and_infinity_affect_their_token_only(bits: int, dtype: torch.dtype) -> None:
    x, row = torch.randn(7, 96, dtype=dtype), torch.rand(48)
    packed = pack4(random_four(48, 96, 0)) if bits == 4 else pack8(random_eight(48, 96, 0))
    expected = linear(x, packed, row, bits=bits)
    x[1, 5], x[4, 0], x[6, 95] = torch.nan, torch.inf, -torch.inf
    for path in here():
        y = linear(x, packed, row, bits=bits, isa=path)
        assert y[[1, 4, 6]].isnan().all()
        torch.testing.assert_close(y[[0, 2, 3, 5]], expected[[0, 2, 3, 5]])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 3e38])
def test_the_smallest_and_largest_activations_are_numbers(size: float) -> None:
    x = torch.full((2, 64), size)
    for path in here():
        y = linear(
            x, pack8(torch.ones(8, 64, dtype=torch.int8)), torch.full((8,), 1e-3), bits=8, isa=path
        )
        torch.testing.assert_close(
            y.double(),
            (x.double() * 64e-3).sum(1, keepdim=True).expand(2, 8) / 64,
            rtol=0.01,
            atol=1e-30,
        )


def test_strided_inputs() -> None:
    wide, row = torch.randn(9, 200), torch.rand(40)
    packed = pack8(random_eight(40, 100, 0))
    torch.testing.assert_close(
        linear(wide[:, ::2], packed, row, bits=8), linear(wide[:, ::2].clone(), packed, row, bits=8)
    )


@given(outputs=st.integers(1, 70), groups=st.integers(1, 5), seed=st.integers(0, 9))
def test_packing_is_invertible(outputs: int, groups: int, seed: int) -> None:
    four, eight = (
        random_four(outputs, GROUP * groups, seed),
        random_eight(outputs, 31 * groups, seed),
    )
    for result, original in zip(unpack4(pack4(four), *four.q.shape), four, strict=True):
        assert torch.equal(result, original)
    assert torch.equal(unpack8(pack8(eight), *eight.shape), eight)


def test_weights_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs"):
        pack4(Int4Weight(*(torch.ones(16, n, dtype=torch.uint8) for n in (33, 1, 1))))
    with pytest.raises(ValueError, match=r"2304 bytes .*576"):
        linear(torch.ones(1, 64), torch.zeros(576, dtype=torch.uint8), torch.ones(64), bits=4)
    with pytest.raises(ValueError, match="expected 2048 bytes"):
        unpack8(torch.zeros(5, dtype=torch.uint8), 32, 64)
    packed, row, x = pack8(random_eight(32, 64, 0)), torch.ones(32), torch.ones(1, 64)
    for a, b in ((packed, packed[:-1]), (packed[:-1], pack8(random_eight(32, 32, 0)))):
        with pytest.raises(ValueError, match="bytes"):
            linear(x, packed, row, bits=8, adapter=Adapter(a, row, b, row, 1.0))
    for onto in (torch.ones(2, 32), torch.ones(1, 32).bfloat16()):
        with pytest.raises(ValueError, match=r"\[1 32\] of torch.float32"):
            linear(x, packed, row, bits=8, onto=onto)
    with pytest.raises(ValueError, match="64 outputs, found 32"):
        linear(x, packed, row, bits=8, gated=True)
    wide = pack8(random_eight(64, 64, 0)), torch.ones(64)
    with pytest.raises(ValueError, match=r"found .* gated"):
        linear(x, *wide, bits=8, gated=True, onto=torch.ones(1, 32))
