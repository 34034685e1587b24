"""Packed weights as numbers: every path equals the formula, for any shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyphi import kernels
from polyphi.kernels import unpack
from polyphi.kernels.linear import blocks, pack
from polyphi.kernels.rotation import BLOCK, rotated_back
from polyphi.kernels.unpack import numbers, transposed
from tests.core.kernels.paths import here
from tests.core.kernels.test_linear import (
    BITS,
    PATHS,
    dequantized,
    packed_weight,
    random_packed,
    random_weight,
)

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@given(
    path=st.sampled_from(here()),
    bits=st.sampled_from([4, 6, 8]),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 130),
)
def test_numbers_equal_the_formula(path: int, bits: int, outputs: int, inputs: int) -> None:
    weight = random_weight(bits, outputs, blocks(inputs) * BLOCK, seed=inputs)
    packed = packed_weight(weight, bits)
    row = torch.randn(outputs, generator=torch.Generator().manual_seed(0))
    expected = dequantized(weight, row)[:, :inputs]
    options = {"bits": bits, "inputs": inputs, "isa": path}
    result = numbers(packed, row, **options)
    # Each number is rounded at most twice.
    torch.testing.assert_close(result.double(), expected, rtol=2**-23, atol=0)
    half = numbers(packed, row, **options, dtype=torch.bfloat16)
    assert torch.equal(half, result.bfloat16())


@PATHS
def test_nothing_is_written_beyond_a_row(path: int) -> None:
    """The inputs needn't be a multiple of the registers' width."""
    weight = random_weight(8, 33, 45, seed=0)
    weight.s.fill_(1)
    packed = pack(weight, 8)
    whole = numbers(packed, torch.ones(33), bits=8, inputs=45, isa=path)
    assert torch.equal(whole, weight.q.float())


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [1, unpack.WEIGHTS])
@pytest.mark.parametrize("is_rotated", [False, True])
def test_a_product_with_the_transposed_weight(
    bits: int,
    dtype: torch.dtype,
    weights: int,
    is_rotated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unpack, "WEIGHTS", weights)
    outputs, inputs = 70, 96
    packed = random_packed(bits, outputs, inputs, seed=1)
    row = torch.rand(outputs) / 1000
    y = torch.randn(5, outputs).to(dtype)
    width = blocks(inputs) * BLOCK if is_rotated else inputs
    stored = numbers(packed, row, bits=bits, inputs=width).to(dtype).double()
    expected = y.double() @ (rotated_back(stored)[:, :inputs] if is_rotated else stored)
    result = transposed(y, packed, row, bits=bits, is_rotated=is_rotated, inputs=inputs)
    assert result.dtype == dtype
    # In bfloat16 rounded up to four times (2^-9 of the largest number); sums of 70 products, and of 64 rotated numbers,
    # in float32.
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=bound)


def test_other_dtypes_and_sizes_are_refused() -> None:
    packed = random_packed(8, 2, 64, seed=0)
    with pytest.raises(ValueError, match="float16"):
        numbers(packed, torch.ones(2), bits=8, inputs=64, dtype=torch.float16)
    with pytest.raises(ValueError, match="bytes"):
        numbers(packed[:-1], torch.ones(2), bits=8, inputs=64)
