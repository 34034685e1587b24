"""Cross-entropy and its gradient in place: every path equals the formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polyphi import kernels
from polyphi.kernels.cross_entropy import cross_entropy_
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


@given(
    path=st.sampled_from(here()),
    rows=st.integers(0, 9),
    vocabulary=st.integers(1, 200),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_it_equals_the_formula(
    path: int, rows: int, vocabulary: int, size: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (size * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    expected.sum().backward()
    before = logits.clone()
    losses = cross_entropy_(logits, labels, gradient=False, isa=path)
    assert torch.equal(logits, before)
    # Sums of up to 200 exponentials in float32, and logits up to 100.
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=2e-6, atol=2e-5)
    assert torch.equal(cross_entropy_(logits, labels, gradient=True, isa=path), losses)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.double(), exact.grad, rtol=rounding + 2e-5, atol=2e-6)


@pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)
def test_a_logit_that_is_not_finite_makes_the_loss_so(path: int) -> None:
    for value in (math.nan, math.inf):
        logits = torch.zeros(2, 40)
        logits[0, 7] = value
        losses = cross_entropy_(logits, torch.tensor([3, 3]), gradient=True, isa=path)
        assert math.isnan(losses[0])
        assert losses[1] == pytest.approx(math.log(40))


def test_a_label_beyond_the_vocabulary_is_refused() -> None:
    for label in (-100, 5):
        with pytest.raises(IndexError, match=str(label)):
            cross_entropy_(torch.zeros(1, 5), torch.tensor([label]), gradient=True)
