"""The rotation of blocks: the same on every path to the bit, its own inverse, and without effect on a product."""

import pytest
import torch
import torch.nn.functional as F

from polyphi import kernels
from polyphi.kernels.rotation import BLOCK, rotated, rotated_back, rotated_by_product
from tests.core.kernels.paths import here


@pytest.mark.parametrize("path", here() if kernels.missing() is None else ())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 64, 130])
@torch.no_grad()
def test_paths_equal_the_formula(path: int, dtype: torch.dtype, inputs: int) -> None:
    x = (torch.randn(3, inputs) * 100).to(dtype)
    padded = F.pad(x.float(), (0, -inputs % BLOCK))
    assert torch.equal(rotated(x, path), rotated_back(padded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inputs", [1, 64, 130])
def test_one_product_rotates_too(dtype: torch.dtype, inputs: int) -> None:
    x = torch.randn(3, inputs).to(dtype)
    result = rotated_by_product(x)
    assert result.dtype == dtype
    # The sums are rounded once in bfloat16, whose numbers have 8 bits, and in another order in float32.
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(result.float(), rotated(x), rtol=tolerance, atol=tolerance)


def test_the_matrix_is_that_of_hadamard() -> None:
    matrix = 8 * rotated(torch.eye(BLOCK))
    assert torch.equal(matrix.abs(), torch.ones(BLOCK, BLOCK))
    assert torch.equal(matrix @ matrix, BLOCK * torch.eye(BLOCK))


def test_products_stay_and_a_large_activation_is_spread() -> None:
    x, weight = torch.randn(4, 200), torch.randn(5, 200)
    x[1, 70] = 3000
    torch.testing.assert_close(
        rotated(x) @ rotated(weight).t(), x @ weight.t(), rtol=1e-4, atol=1e-2
    )
    assert rotated(x)[1].abs().max() < 3000 / 8 + 10
