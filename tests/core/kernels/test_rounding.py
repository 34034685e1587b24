"""The search of scales and zeros, and the rounding of blocks, give the levels of their formulas."""

import pytest
import torch

from polyphi import kernels
from polyphi.kernels import rounding
from polyphi.quantization.rounding import FITS, STARTS, _by_groups, _by_rows, _row, search
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_levels_are_those_of_the_formula(isa: int, dtype: torch.dtype) -> None:
    """Also of rows of zeros, of equal weights, of one sign, of outliers, and for a number of groups that no vector
    divides. Equal to the last bit: the sums have the order of torch's."""
    weight = torch.randn(70, 32 * 19, generator=torch.Generator().manual_seed(isa))
    weight[0] = 0
    weight[1] = 0.37
    weight[2].abs_()
    weight[3, ::50] *= 1000
    weight[4] *= 1e-30
    weight = weight.to(dtype)
    formula = _by_rows(weight, _by_groups(search))
    assert rounding.supports_search(weight)
    for ours, theirs in zip(
        rounding.search(weight, _row(weight), STARTS, FITS, isa), formula.four, strict=True
    ):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_threads_change_nothing() -> None:
    weight = torch.randn(333, 64, generator=torch.Generator().manual_seed(0))
    several = rounding.search(weight, _row(weight), STARTS, FITS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = rounding.search(weight, _row(weight), STARTS, FITS)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(several, alone, strict=True))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [6, 8])
@torch.no_grad()
def test_blocks_are_those_of_the_formula(
    isa: int, dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to the last bit, for a number of inputs that no block divides too."""
    weight = torch.randn(33, 200, generator=torch.Generator().manual_seed(isa))
    weight[0] = 0
    weight[1, 7] = 1e4
    weight[2] *= 1e-30
    weight = weight.to(dtype)
    ours, row = rounding.round_blocks(weight, bits, isa)
    monkeypatch.setattr(rounding, "supports_search", lambda weight: False)
    formula, expected = rounding.round_blocks(weight, bits)
    assert torch.equal(ours.q, formula.q) and torch.equal(ours.s, formula.s)
    assert torch.equal(row, expected)
