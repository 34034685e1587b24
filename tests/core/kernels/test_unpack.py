"""Packed weights as numbers: every path equals the formula, for any shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels.paths import here
from kernels.test_linear import PATHS, dequantized, random_eight, random_four

from polyphi import kernels
from polyphi.kernels import unpack
from polyphi.kernels.linear import GROUP, pack4, pack8
from polyphi.kernels.unpack import numbers, transposed

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@given(
    path=st.sampled_from(here()),
    bits=st.sampled_from([4, 8]),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 130),
)
def test_numbers_equal_the_formula(path: int, bits: int, outputs: int, inputs: int) -> None:
    if bits == 4:
        inputs = -(-inputs // GROUP) * GROUP
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed=inputs)
    packed = pack4(weight) if bits == 4 else pack8(weight)
    row = torch.randn(outputs, generator=torch.Generator().manual_seed(0))
    expected = dequantized(weight, row)
    result = numbers(packed, row, bits=bits, inputs=inputs, isa=path)
    # Each number is rounded at most three times: row * s, that times z / 16, and the sum.
    largest = expected.abs().max() + 16 * 256 * row.abs().max() * (bits == 4)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=float(largest) * 2**-22)
    half = numbers(packed, row, bits=bits, inputs=inputs, isa=path, dtype=torch.bfloat16)
    assert torch.equal(half, result.bfloat16())


@PATHS
def test_nothing_is_written_beyond_a_row(path: int) -> None:
    """The inputs needn't be a multiple of the registers' width."""
    weight = random_eight(33, 45, seed=0)
    whole = numbers(pack8(weight), torch.ones(33), bits=8, inputs=45, isa=path)
    assert torch.equal(whole, weight.float())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [1, unpack.WEIGHTS])
def test_a_product_with_the_transposed_weight(
    bits: int, dtype: torch.dtype, weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "WEIGHTS", weights)
    outputs, inputs = 70, 96
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed=1)
    packed = pack4(weight) if bits == 4 else pack8(weight)
    row = torch.rand(outputs) / 1000
    y = torch.randn(5, outputs).to(dtype)
    expected = y.double() @ dequantized(weight, row).to(dtype).double()
    result = transposed(y, packed, row, bits=bits, inputs=inputs)
    assert result.dtype == dtype
    # In bfloat16 rounded up to four times (2^-9 of the largest number); sums of 70 products in float32.
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=bound)


def test_other_dtypes_and_sizes_are_refused() -> None:
    packed = pack8(random_eight(2, 64, seed=0))
    with pytest.raises(ValueError, match="float16"):
        numbers(packed, torch.ones(2), bits=8, inputs=64, dtype=torch.float16)
    with pytest.raises(ValueError, match="bytes"):
        numbers(packed[:-1], torch.ones(2), bits=8, inputs=64)
