"""Kernels of 4, 6 and 8 bits: every path equals the formula for any shapes and extreme values."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels import native
from polyphi.kernels.blocks import swiglu
from polyphi.kernels.linear import (
    GROUP,
    LARGEST,
    UNPACK_MIN_TOKENS,
    Adapter,
    Int4Weight,
    IntWeight,
    blocks,
    linear,
    linear_rows,
    pack,
    pack4,
    rows,
    unpack,
    unpack4,
)
from polyphi.kernels.rotation import BLOCK, rotated, rotated_back
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


UNPACKING = ("AVX-512 VNNI", "AVX-VNNI", "NEON i8mm")
PATHS = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)


BITS = pytest.mark.parametrize("bits", [4, 6, 8])


def random_weight(bits: int, outputs: int, inputs: int, seed: int) -> Int4Weight | IntWeight:
    draw = torch.Generator().manual_seed(seed)
    if bits == 4:
        pairs = (outputs, inputs // GROUP)
        return Int4Weight(
            torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=draw),
            *(torch.randint(0, 256, pairs, dtype=torch.uint8, generator=draw) for _ in range(2)),
        )
    most, scales = LARGEST[bits], (outputs, blocks(inputs))
    return IntWeight(
        torch.randint(-most, most + 1, (outputs, inputs), dtype=torch.int8, generator=draw),
        torch.randint(1, 256, scales, dtype=torch.uint8, generator=draw),
    )


def packed_weight(weight: Int4Weight | IntWeight, bits: int = 8) -> Tensor:
    return pack4(weight) if isinstance(weight, Int4Weight) else pack(weight, bits)


def random_packed(bits: int, outputs: int, inputs: int, seed: int) -> Tensor:
    """A packed weight whose inputs are rotated."""
    return packed_weight(random_weight(bits, outputs, blocks(inputs) * BLOCK, seed), bits)


def dequantized(weight: Int4Weight | IntWeight, row: Tensor) -> Tensor:
    """The weight in double precision."""
    if isinstance(weight, IntWeight):
        scales = weight.s.double().repeat_interleave(BLOCK, 1)[:, : weight.q.shape[1]]
        return weight.q.double() * scales * row.double()[:, None]
    groups = weight.q.double().view(*weight.s.shape, GROUP)
    w = (groups - weight.z.double()[..., None] / 16) * weight.s.double()[..., None]
    return w.view(weight.q.shape) * row.double()[:, None]


def unpacked(weight: Int4Weight) -> tuple[IntWeight, Tensor]:
    """A weight in 4 bits unpacked to int8, as used for many tokens, and the factor of its rows. (Computed in 256ths
    with truncation, as in the kernels.)"""
    inputs, groups = weight.q.shape[1], 2 * blocks(weight.q.shape[1])
    q, s, z = (
        F.pad(t, (0, width - t.shape[1]))
        for t, width in zip(weight, (groups * GROUP, groups, groups), strict=True)
    )
    s, z = s.float(), z.float()
    most = (s * torch.maximum(z, 240 - z)).view(len(s), -1, 2).amax(2)
    unit = most.amax(1, keepdim=True).clamp(min=1) / 255
    scale = (most / unit * 0.999999).int() + 1
    # A number divided by a tensor would be computed by the reciprocal, which rounds twice.
    factor = torch.full_like(most, 127 * 256) / (scale * unit)
    factor = factor.repeat_interleave(2, 1)
    step = (16 * (s * factor) + 0.5).int()[..., None]
    none = (128.5 * 256 - z * (s * factor)).int()[..., None]
    eight = ((q.int().view(*s.shape, GROUP) * step + none) >> 8) - 128
    levels = eight.view(len(q), -1)[:, :inputs].to(torch.int8)
    return IntWeight(levels, scale.to(torch.uint8)), unit[:, 0] / (127 * 16)


def multiplied(weight: Int4Weight | IntWeight, row: Tensor, tokens: int, path: int) -> Tensor:
    """The weight that a path uses for so many tokens, in double precision."""
    if (
        isinstance(weight, Int4Weight)
        and tokens >= UNPACK_MIN_TOKENS
        and kernels.PATHS[path] in UNPACKING
    ):
        eight, factor = unpacked(weight)
        return dequantized(eight, row * factor)
    return dequantized(weight, row)


def rounded(x: Tensor, is_rotated: bool = True) -> tuple[Tensor, Tensor]:
    """Activations as integers with a largest magnitude of 127 per token and block, and the scale of each block."""
    width = blocks(x.shape[1]) * BLOCK
    values = 8 * rotated(x) if is_rotated else F.pad(x.float(), (0, width - x.shape[1]))
    groups = values.view(len(x), -1, BLOCK)
    step = (groups.abs().amax(2, keepdim=True) / 127).clamp(min=1e-30)
    return (groups * (1 / step)).round(), step / 8 if is_rotated else step


def activations(x: Tensor, is_rotated: bool = True) -> Tensor:
    """The rounded activations, in double precision; without the padding if they aren't rotated."""
    q, step = rounded(x, is_rotated)
    values = (q.double() * step.double()).flatten(1)
    return values if is_rotated else values[:, : x.shape[1]]


def low_rank(x: Tensor, a: IntWeight, a_row: Tensor) -> Tensor:
    """A x of an adapter, before its second product: integer sums of each block, added in float32 times the factors of
    token, block and output."""
    q, step = rounded(x)
    total = torch.zeros(len(x), len(a_row))
    for block in range(q.shape[1]):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        sums = q[:, block].double() @ a.q[:, part].double().t()
        factor = (a.s[:, block].float() * step[:, block]).double()
        total = (sums * factor + total.double()).float()
    return total * a_row


@PATHS
@settings(max_examples=60)
@given(
    bits=st.sampled_from([4, 6, 8]),
    is_rotated=st.booleans(),
    tokens=st.integers(1, 19) | st.integers(UNPACK_MIN_TOKENS - 2, UNPACK_MIN_TOKENS + 9),
    outputs=st.integers(1, 80),
    inputs=st.integers(1, 200),
    rank=st.integers(0, 70),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
    half=st.booleans(),
)
def test_products_equal_the_formula(
    path: int,
    bits: int,
    is_rotated: bool,
    tokens: int,
    outputs: int,
    inputs: int,
    rank: int,
    seed: int,
    size: float,
    half: bool,
) -> None:
    if bits == 4 and not is_rotated:
        inputs = GROUP * -(-inputs // GROUP)
    width = blocks(inputs) * BLOCK
    weight = random_weight(bits, outputs, width if is_rotated else inputs, seed)
    packed = packed_weight(weight, bits)
    draw = torch.Generator().manual_seed(seed + 1)
    row = torch.rand(outputs, generator=draw) + 0.1
    x = size * torch.randn(tokens, inputs, generator=draw)
    x = x.bfloat16() if half else x
    x[tokens // 2] = 0
    x[-1, :5] *= 1000
    own = activations(x, is_rotated)
    expected = own @ multiplied(weight, row, tokens, path).t()
    # The sums of up to 8 groups are added in float32: an error of some units in the last place of the largest possible
    # result. bfloat16 rounds the result.
    most = own.abs() @ dequantized(weight, row).abs().t() + 1e-30
    adapter = None
    if rank:
        a = random_weight(8, rank, width, seed + 2)
        b = random_weight(8, outputs, blocks(rank) * BLOCK, seed + 3)
        assert isinstance(a, IntWeight)
        a_row, b_row = (torch.rand(n, generator=draw) for n in (rank, outputs))
        adapter = Adapter(pack(a, 8), a_row, packed_weight(b), b_row, -0.5)
        low = activations(low_rank(x, a, a_row))
        expected -= 0.5 * low @ dequantized(b, b_row).t()
        most += low.abs() @ dequantized(b, b_row).abs().t()
    y = linear(x, packed, row, bits=bits, rotated=is_rotated, adapter=adapter, isa=path)
    assert y.dtype == x.dtype
    allowed = 5e-3 if half else 2e-6
    assert ((y.double() - expected).abs() / (most + expected.abs())).max() < allowed
    onto = size * torch.randn(tokens, outputs, generator=draw).to(x.dtype)
    total = linear(
        x, packed, row, bits=bits, rotated=is_rotated, adapter=adapter, onto=onto, isa=path
    )
    assert torch.equal(total, onto + y)


@PATHS
@pytest.mark.parametrize("tokens", [1, 5, 19, 40])
def test_rows_in_8_bits_equal_the_formula(path: int, tokens: int) -> None:
    """Activations that are rounded before, with one scale each, by a weight with one scale per output."""
    weight, row = random_weight(8, 40, 100, 0), torch.rand(40)
    q = torch.randint(1, 256, (tokens, 100), dtype=torch.uint8)
    scale = torch.rand(tokens)
    expected = (q.double() - 128) * scale.double()[:, None] @ dequantized(weight, row).t()
    y = linear_rows(q, scale, packed_weight(weight), row, path)
    torch.testing.assert_close(
        y.double(), expected, rtol=2**-8, atol=1e-4 * float(expected.abs().max())
    )


@contextmanager
def without_amx() -> Iterator[None]:
    cap = os.environ.get("POLYPHI_MAX_CPU_ISA", "NEON_I8MM").upper()
    native.limit("AVX512_BF16" if native.amx() else cap)
    assert not native.amx()
    yield
    native.limit(cap)


@settings(max_examples=60)
@given(
    bits=st.sampled_from([4, 6, 8]),
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
    outputs = 64 * -(-outputs // 64) if gated else outputs
    packed = random_packed(bits, outputs, inputs, seed)
    draw = torch.Generator().manual_seed(seed)
    row, a_row, b_row = (torch.rand(n, generator=draw) for n in (outputs, rank, outputs))
    x = torch.randn(tokens, inputs, generator=draw).bfloat16()
    x[0, 0], x[-1, 0] = 1e4, torch.nan
    adapter = None
    if rank:
        a, b = random_packed(8, rank, inputs, seed + 2), random_packed(8, outputs, rank, seed + 3)
        adapter = Adapter(a, a_row, b, b_row, -0.5)
    result = linear(x, packed, row, bits=bits, adapter=adapter, gated=gated)
    with without_amx():
        expected = linear(x, packed, row, bits=bits, adapter=adapter, gated=gated)
    assert result.equal(expected) or torch.equal(result.nan_to_num(7), expected.nan_to_num(7))


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BITS
@pytest.mark.parametrize("tokens", [1, 19, UNPACK_MIN_TOKENS + 5])
def test_a_gated_product_equals_swiglu_of_the_product(
    path: int, dtype: torch.dtype, bits: int, tokens: int
) -> None:
    x, row = torch.randn(tokens, 96, dtype=dtype), torch.rand(192) / 100
    packed = random_packed(bits, 192, 96, 0)
    factors = random_packed(8, 7, 96, 1), row[:7], random_packed(8, 192, 7, 2), row
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
            y = linear(x, pack4(weight), torch.ones(32), bits=4, rotated=False, isa=path)
            torch.testing.assert_close(
                y.double(), x.double() @ dequantized(weight, torch.ones(32)).t(), rtol=1e-5, atol=10
            )
    for bits, most in LARGEST.items():
        for end in (-most, most):
            q = torch.full((32, 8192), end, dtype=torch.int8)
            weight8 = IntWeight(q, torch.full((32, 128), 255, dtype=torch.uint8))
            for path in here():
                y = linear(
                    x, pack(weight8, bits), torch.ones(32), bits=bits, rotated=False, isa=path
                )
                torch.testing.assert_close(
                    y.double(),
                    x.double() @ dequantized(weight8, torch.ones(32)).t(),
                    rtol=1e-6,
                    atol=1e-2,
                )


@BITS
def test_paths_agree(bits: int) -> None:
    x, row = torch.randn(11, 3072), torch.rand(64)
    packed = random_packed(bits, 64, 3072, 0)
    results = [linear(x, packed, row, bits=bits, isa=path) for path in here()]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "bits, tokens, alone",
    [(4, UNPACK_MIN_TOKENS - 1, 1), (4, 300, UNPACK_MIN_TOKENS), (6, 300, 1), (8, 300, 1)],
)
def test_a_token_does_not_depend_on_its_neighbours(bits: int, tokens: int, alone: int) -> None:
    x, row = torch.randn(tokens, 96), torch.rand(48)
    packed = random_packed(bits, 48, 96, 0)
    x[3] *= 1e4
    factors = random_packed(8, 7, 96, 1), torch.rand(7), random_packed(8, 48, 7, 2), row
    for adapter in (None, Adapter(*factors, 0.5)):
        batched = linear(x, packed, row, bits=bits, adapter=adapter)
        for i in (0, 3, 4, 19, tokens - alone):
            some = linear(x[i : i + alone], packed, row, bits=bits, adapter=adapter)
            assert torch.equal(some, batched[i : i + alone])


@PATHS
def test_unpacking_4_bits_adds_no_more_error_than_rounding_to_8(path: int) -> None:
    weight, row, x = (
        random_weight(4, 64, 3072, 0),
        torch.rand(64),
        torch.randn(UNPACK_MIN_TOKENS, 3072),
    )
    y = linear(x, packed_weight(weight), row, bits=4, isa=path)
    expected = activations(x) @ dequantized(weight, row).t()
    error = ((y - expected).norm() / expected.norm()).item()
    values = dequantized(weight, row).view(64, -1, BLOCK)
    step = values.abs().amax(2, keepdim=True) / 127
    nearest = activations(x) @ ((values / step).round() * step).flatten(1).t()
    assert error < 1.1 * ((nearest - expected).norm() / expected.norm()).item()


def test_extreme_panels_of_4_bits_are_unpacked() -> None:
    """Scales of 0, the smallest and the largest, zeros at both ends: no value exceeds the range of int8."""
    for s, z, q in ((0, 0, 15), (1, 255, 0), (255, 0, 15), (255, 255, 0), (255, 240, 15)):
        fills = ((64, q), (2, s), (2, z))
        weight = Int4Weight(*(torch.full((32, n), v, dtype=torch.uint8) for n, v in fills))
        weight.s[:, 1] = 255 - s
        x = torch.randn(UNPACK_MIN_TOKENS, 64)
        for path in here():
            y = linear(x, pack4(weight), torch.ones(32), bits=4, rotated=False, isa=path)
            expected = (
                activations(x, False)
                @ multiplied(weight, torch.ones(32), UNPACK_MIN_TOKENS, path).t()
            )
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BITS
def test_nan_and_infinity_affect_their_token_only(bits: int, dtype: torch.dtype) -> None:
    x, row = torch.randn(7, 96, dtype=dtype), torch.rand(48)
    packed = random_packed(bits, 48, 96, 0)
    expected = linear(x, packed, row, bits=bits)
    x[1, 5], x[4, 0], x[6, 95] = torch.nan, torch.inf, -torch.inf
    for path in here():
        y = linear(x, packed, row, bits=bits, isa=path)
        assert y[[1, 4, 6]].isnan().all()
        torch.testing.assert_close(y[[0, 2, 3, 5]], expected[[0, 2, 3, 5]])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e36])
def test_the_smallest_and_largest_activations_are_numbers(size: float) -> None:
    x = torch.full((2, 64), size)
    for path in here():
        ones = IntWeight(torch.ones(8, 64, dtype=torch.int8), torch.ones(8, 1, dtype=torch.uint8))
        y = linear(x, pack(ones, 8), torch.full((8,), 1e-3), bits=8, rotated=False, isa=path)
        torch.testing.assert_close(
            y.double(),
            (x.double() * 64e-3).sum(1, keepdim=True).expand(2, 8) / 64,
            rtol=0.01,
            atol=1e-30,
        )


def test_strided_inputs() -> None:
    wide, row = torch.randn(9, 200), torch.rand(40)
    packed = random_packed(8, 40, 100, 0)
    torch.testing.assert_close(
        linear(wide[:, ::2], packed, row, bits=8), linear(wide[:, ::2].clone(), packed, row, bits=8)
    )


@given(outputs=st.integers(1, 70), groups=st.integers(1, 5), seed=st.integers(0, 9))
def test_packing_is_invertible(outputs: int, groups: int, seed: int) -> None:
    four = random_weight(4, outputs, GROUP * groups, seed)
    for result, original in zip(unpack4(packed_weight(four), *four.q.shape), four, strict=True):
        assert torch.equal(result, original)
    for bits in LARGEST:
        weight = random_weight(bits, outputs, 31 * groups, seed)
        result = unpack(packed_weight(weight, bits), bits, *weight.q.shape)
        assert torch.equal(result.q, weight.q) and torch.equal(result.s, weight.s)


@BITS
def test_rows_are_those_of_the_weight_before_its_rotation(bits: int) -> None:
    weight, row = random_weight(bits, 40, 128, 0), torch.rand(40)
    values, ids = dequantized(weight, row).float(), torch.tensor([39, 0, 7, 7])
    for is_rotated, expected in ((False, values), (True, rotated_back(values)[:, :100])):
        result = rows(
            packed_weight(weight, bits), row, ids, expected.shape[1], bits=bits, rotated=is_rotated
        )
        torch.testing.assert_close(result, expected[ids], rtol=1e-5, atol=1e-3)


def test_weights_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs"):
        pack4(Int4Weight(*(torch.ones(16, n, dtype=torch.uint8) for n in (33, 1, 1))))
    with pytest.raises(ValueError, match="a scale for each 64 inputs"):
        pack(IntWeight(torch.ones(2, 65, dtype=torch.int8), torch.ones(2, 1).byte()), 8)
    with pytest.raises(ValueError, match=r"2304 bytes .*576"):
        linear(torch.ones(1, 64), torch.zeros(576, dtype=torch.uint8), torch.ones(64), bits=4)
    with pytest.raises(ValueError, match="expected 2112 bytes"):
        unpack(torch.zeros(5, dtype=torch.uint8), 8, 32, 64)
    packed, row, x = random_packed(8, 32, 64, 0), torch.ones(32), torch.ones(1, 64)
    for a, b in ((packed, packed[:-1]), (packed[:-1], random_packed(8, 32, 32, 0))):
        with pytest.raises(ValueError, match="bytes"):
            linear(x, packed, row, bits=8, adapter=Adapter(a, row, b, row, 1.0))
    for onto in (torch.ones(2, 32), torch.ones(1, 32).bfloat16()):
        with pytest.raises(ValueError, match=r"\[1 32\] of torch.float32"):
            linear(x, packed, row, bits=8, onto=onto)
    with pytest.raises(ValueError, match="64 outputs, found 32"):
        linear(x, packed, row, bits=8, gated=True)
    wide = random_packed(8, 64, 64, 0), torch.ones(64)
    with pytest.raises(ValueError, match=r"found .* gated"):
        linear(x, *wide, bits=8, gated=True, onto=torch.ones(1, 32))
