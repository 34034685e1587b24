"""Packed weights as numbers: every path equals the formula, for any shape and range of columns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels.paths import here
from kernels.test_linear import PATHS, dequantized, random_eight, random_four

from polyphi import kernels
from polyphi.kernels.linear import GROUP, pack4, pack8
from polyphi.kernels.unpack import COLUMNS, columns, transposed

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@given(
    path=st.sampled_from(here()),
    bits=st.sampled_from([4, 8]),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 130),
    data=st.data(),
)
def test_columns_equal_the_formula(
    path: int, bits: int, outputs: int, inputs: int, data: st.DataObject
) -> None:
    if bits == 4:
        inputs = -(-inputs // GROUP) * GROUP
    groups = -(-inputs // GROUP)
    first = data.draw(st.integers(0, groups - 1)) * GROUP
    last = min(inputs, data.draw(st.integers(first // GROUP + 1, groups)) * GROUP)
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed=inputs)
    packed = pack4(weight) if bits == 4 else pack8(weight)
    row = torch.randn(outputs, generator=torch.Generator().manual_seed(0))
    expected = dequantized(weight, row)[:, first:last]
    options = {"bits": bits, "inputs": inputs, "isa": path}
    result = columns(packed, row, first, last, **options)
    # Each number is rounded at most three times: row * s, that times z / 16, and the sum.
    largest = expected.abs().max() + 16 * 256 * row.abs().max() * (bits == 4)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=float(largest) * 2**-22)
    half = columns(packed, row, first, last, dtype=torch.bfloat16, **options)
    assert torch.equal(half, result.bfloat16())


@PATHS
def test_nothing_is_written_beyond_the_columns(path: int) -> None:
    """A column that isn't a multiple of the registers' width is the last one."""
    weight = random_eight(33, 45, seed=0)
    whole = columns(pack8(weight), torch.ones(33), 0, 45, bits=8, inputs=45, isa=path)
    assert torch.equal(whole, weight.float())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_the_transposed_weight(bits: int, dtype: torch.dtype) -> None:
    outputs, inputs = 70, COLUMNS + 96
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed=1)
    packed = pack4(weight) if bits == 4 else pack8(weight)
    row = torch.rand(outputs) / 1000
    y = torch.randn(5, outputs).to(dtype)
    expected = y.double() @ dequantized(weight, row).to(dtype).double()
    result = transposed(y, packed, row, bits=bits, inputs=inputs)
    assert result.dtype == dtype
    # Rounded once in bfloat16 (2^-9 of the largest number); sums of 70 products in float32.
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 64), (0, 33), (32, 128)])
def test_wrong_columns_are_refused(first: int, last: int) -> None:
    packed = pack8(random_eight(2, 64, seed=0))
    with pytest.raises(ValueError, match=f"found {first} to {last}"):
        columns(packed, torch.ones(2), first, last, bits=8, inputs=64)


def test_other_dtypes_and_sizes_are_refused() -> None:
    packed = pack8(random_eight(2, 64, seed=0))
    with pytest.raises(ValueError, match="float16"):
        columns(packed, torch.ones(2), 0, 64, bits=8, inputs=64, dtype=torch.float16)
    with pytest.raises(ValueError, match="bytes of a packed weight"):
        columns(packed[:-1], torch.ones(2), 0, 64, bits=8, inputs=64)
