"""A token by weights of bfloat16: what the formula gives, on every path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.paths import here

from polyphi import kernels
from polyphi.kernels import half

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)
@settings(max_examples=40)
@given(
    outputs=st.integers(1, 80),
    inputs=st.integers(1, 200),
    seed=st.integers(0, 99),
    narrow=st.booleans(),
)
def test_products_are_those_of_the_formula(
    path: int, outputs: int, inputs: int, seed: int, narrow: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if narrow else torch.float32
    x = torch.randn(1, inputs, generator=draw).to(dtype)
    w = torch.randn(outputs, inputs, generator=draw).bfloat16()
    y = torch.randn(1, outputs, generator=draw).to(dtype)
    wanted = x.double() @ w.double().t()
    most = x.double().abs() @ w.double().abs().t() + 1
    allowed = 4e-3 if narrow else 1e-6
    assert ((half.linear(x, w, isa=path).double() - wanted).abs() / most).max() < allowed
    wanted = y.double() - 0.5 * wanted
    found = half.add(y.clone(), x, w, scale=-0.5, isa=path)
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() / (most + y.abs())).max() < allowed


def test_what_does_not_fit_is_refused() -> None:
    w = torch.ones(4, 6).bfloat16()
    with pytest.raises(ValueError, match=r"a token of \[1 6\]"):
        half.linear(torch.ones(1, 5), w)
    with pytest.raises(ValueError, match="a weight in bfloat16"):
        half.linear(torch.ones(1, 6), w.float())
    with pytest.raises(ValueError, match="contiguous sum"):
        half.add(torch.ones(1, 4).bfloat16(), torch.ones(1, 6), w, scale=1.0)
