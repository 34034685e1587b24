"""Linear layers with bfloat16 weights: every path equals the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi import kernels
from polyphi.kernels import bf16
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
every_path = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)


@every_path
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.one_of(st.integers(1, 20), st.integers(90, 110)),
    outputs=st.integers(1, 80),
    inputs=st.one_of(st.integers(1, 200), st.integers(250, 270)),
    seed=st.integers(0, 99),
    narrow=st.booleans(),
    biased=st.booleans(),
)
def test_products_equal_the_formula(
    path: int, tokens: int, outputs: int, inputs: int, seed: int, narrow: bool, biased: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if narrow else torch.float32
    x = torch.randn(tokens, inputs, generator=draw).to(dtype)
    w = torch.randn(outputs, inputs, generator=draw).bfloat16()
    bias = torch.randn(outputs, generator=draw).bfloat16() if biased else None
    y = torch.randn(tokens, outputs, generator=draw).to(dtype)
    expected = x.double() @ w.double().t()
    size = x.double().abs() @ w.double().abs().t() + 1
    # Results are rounded once: to 8 bits of mantissa, or in float32 sums.
    allowed = 4e-3 if narrow else 1e-6
    added = bf16.add(y.clone(), x, w, scale=-0.5, isa=path)
    assert added.dtype == dtype
    total = y.double() - 0.5 * expected
    assert ((added.double() - total).abs() / (size + y.abs())).max() < allowed
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    result = bf16.linear(x, w, bias, isa=path)
    assert ((result.double() - expected).abs() / size).max() < allowed


@every_path
@pytest.mark.parametrize("tokens", [16, 40])
def test_a_token_does_not_depend_on_its_neighbours(path: int, tokens: int) -> None:
    """Bit for bit in batches of up to 16 tokens, and in larger ones of any size."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(tokens, 300, generator=draw), torch.randn(70, 300, generator=draw).bfloat16()
    batched = bf16.linear(x, w, isa=path)
    for part in (
        (slice(0, 17), slice(tokens - 23, tokens)) if tokens > 16 else (slice(3, 4), slice(2, 9))
    ):
        assert torch.equal(bf16.linear(x[part], w, isa=path), batched[part])


def test_inputs_that_do_not_fit_raise() -> None:
    w = torch.ones(4, 6).bfloat16()
    with pytest.raises(ValueError, match=r"\[T 6\]"):
        bf16.linear(torch.ones(1, 5), w)
    with pytest.raises(ValueError, match="bfloat16"):
        bf16.linear(torch.ones(1, 6), w.float())
    with pytest.raises(ValueError, match=r"\[4\] in bfloat16"):
        bf16.linear(torch.ones(1, 6), w, torch.ones(4))
    with pytest.raises(ValueError, match="contiguous sum"):
        bf16.add(torch.ones(1, 4).bfloat16(), torch.ones(1, 6), w, scale=1.0)
