"""RMS norm, SwiGLU and rotary embedding: every path equals the formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.blocks import gelu, rms_norm, rotate, swiglu
from polyphi.model import rope
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
WAYS = here()

inputs = given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 70),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-4, 1.0, 50.0]),
    half=st.booleans(),
)


def noise(*shape: int, seed: int, size: float, half: bool) -> Tensor:
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.bfloat16() if half else x


def assert_near(y: Tensor, expected: Tensor, steps: float = 1.0) -> None:
    """Within `steps` roundings of the dtype."""
    assert y.dtype in (torch.float32, torch.bfloat16) and y.shape == expected.shape
    rounding = torch.finfo(y.dtype).eps * steps
    torch.testing.assert_close(y.double(), expected.double(), rtol=rounding, atol=1e-30)


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
@settings(max_examples=25)
@inputs
def test_the_norm_is_rounded_before_its_weight(
    way: int, tokens: int, width: int, seed: int, size: float, half: bool
) -> None:
    x = noise(tokens, width, seed=seed, size=size, half=half)
    weight = noise(width, seed=seed + 1, size=1.0, half=half)
    wide = x.double()
    expected = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_near(rms_norm(x, weight, 1e-5, way), expected, 2 if half else 8)
    if half:
        exact = F.rms_norm(x, (width,), eps=1e-5) * weight
        same = rms_norm(x, weight, 1e-5, way) == exact
        assert same.float().mean() > 0.95, (
            "all except those that another order of the sum rounds otherwise"
        )


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
@settings(max_examples=25)
@inputs
def test_the_gate_is_a_sigmoid_linear_unit(
    way: int, tokens: int, width: int, seed: int, size: float, half: bool
) -> None:
    x = noise(tokens, 2 * width, seed=seed, size=size, half=half)
    gate, up = x.double().chunk(2, 1)
    y, expected = swiglu(x, way), up * F.silu(gate)
    small = gate < -87  # e^-87 underflows to nearly 0
    assert_near(y.masked_fill(small, 0), expected.masked_fill(small, 0), 1 if half else 8)
    assert y[small].abs().max() < 1e-30 if small.any() else True


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
@settings(max_examples=25)
@inputs
def test_gelu_equals_torchs(
    way: int, tokens: int, width: int, seed: int, size: float, half: bool
) -> None:
    """Within a rounding of bfloat16, 1e-6 of a number in float32: for large negative ones, where 1 - tanh cancels, the
    sigmoid is the more exact form."""
    x = noise(tokens, width, seed=seed, size=size, half=half)
    y, expected = gelu(x, way), F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(y.double(), expected, rtol=4e-3 if half else 1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
@settings(max_examples=25)
@given(
    tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    shape=st.sampled_from([(128, 48), (32, 12), (16, 6), (16, 8), (96, 20)]),
    seed=st.integers(0, 99),
    half=st.booleans(),
)
def test_rotated_heads_equal_those_of_the_model(
    way: int, tokens: int, heads: int, shape: tuple[int, int], seed: int, half: bool
) -> None:
    d, pairs = shape
    x = noise(tokens, heads + 2, d, seed=seed, size=1.0, half=half)[:, :heads]
    angle = noise(tokens, 1, pairs, seed=seed + 1, size=3.0, half=False)
    cos, sin = (a.to(x.dtype) for a in (angle.cos(), angle.sin()))
    with torch.enable_grad():  # torch's own
        expected = rope.rotate(x.double(), cos.double(), sin.double())
    y = rotate(x, cos, sin, way)
    steps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=steps, atol=4e-7 if not half else 1e-5)
    assert torch.equal(y[..., 2 * pairs :], x[..., 2 * pairs :])


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
def test_extremes(way: int) -> None:
    x = torch.tensor([[1e38, -1e38, 0.0, float("nan"), 2.0, 2.0, 2.0, 2.0]])
    y = swiglu(x, way)[0]
    assert y[0] == 2e38 and y[1] == 0 and y[2] == 0 and y[3].isnan()
    assert torch.equal(rms_norm(torch.zeros(2, 20), torch.ones(20), 1e-5, way), torch.zeros(2, 20))


def test_kernels_are_used_without_gradients_only() -> None:
    x = torch.ones(2, 4)
    assert not kernels.fits(x)
    with torch.no_grad():
        assert kernels.fits(x) and kernels.fits(x.bfloat16(), x.bfloat16())
        assert not kernels.fits(x, x.bfloat16())
        assert not kernels.fits(x.double()) and not kernels.fits(x.to("meta"))


def gradients(y: Tensor, slopes: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, slopes))


@pytest.mark.parametrize("way", WAYS, ids=kernels.PATHS.__getitem__)
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 7, 128, 300]),
    width=st.sampled_from([8, 30, 64]),
    seed=st.integers(0, 99),
    half=st.booleans(),
)
def test_gradients_are_those_of_the_formulas(
    way: int, tokens: int, width: int, seed: int, half: bool
) -> None:
    """As shares of the largest value: 4e-7 in float32, 4.3e-3 (a rounding) in bfloat16. The gradient of the norm's
    weight is a sum over tokens, which may cancel: its error is a share of the sum of absolute values."""
    error = 5e-3 if half else 1e-6

    def assert_close(ours: Tensor, expected: Tensor, largest: float) -> None:
        assert (ours.double() - expected).abs().max() <= error * max(largest, 1e-3)

    x = noise(tokens, width, seed=seed, size=1.0, half=half).requires_grad_()
    weight = noise(width, seed=seed + 1, size=1.0, half=half).requires_grad_()
    slopes = noise(tokens, width, seed=seed + 2, size=1.0, half=half)
    exact, exact_weight, exact_slopes = (t.detach().double() for t in (x, weight, slopes))
    exact, exact_weight = exact.requires_grad_(), exact_weight.requires_grad_()
    normalized = F.rms_norm(exact, (width,), eps=1e-5)
    of_x, of_weight = gradients(normalized * exact_weight, exact_slopes, exact, exact_weight)
    ours = gradients(rms_norm(x, weight, 1e-5, way), slopes, x, weight)
    assert_close(ours[0], of_x, float(of_x.abs().max()))
    terms = (exact_slopes * normalized.detach()).abs().sum(0)
    assert_close(ours[1], of_weight, float(terms.max()))

    both = noise(tokens, 2 * width, seed=seed, size=3.0, half=half).requires_grad_()
    exact = both.detach().double().requires_grad_()
    gate, up = exact.chunk(2, 1)
    (ours,) = gradients(swiglu(both, way), slopes, both)
    (expected,) = gradients(up * F.silu(gate), exact_slopes, exact)
    assert_close(ours, expected, float(expected.abs().max()))

    x = noise(tokens, width, seed=seed, size=3.0, half=half).requires_grad_()
    slopes = noise(tokens, width, seed=seed + 2, size=1.0, half=half)
    exact = x.detach().double().requires_grad_()
    (expected,) = gradients(F.gelu(exact, approximate="tanh"), slopes.double(), exact)
    (ours,) = gradients(gelu(x, way), slopes, x)
    assert_close(ours, expected, float(expected.abs().max()))

    heads = noise(tokens, 2, 32, seed=seed, size=1.0, half=half).requires_grad_()
    cos, sin = (noise(tokens, 1, 12, seed=seed + i, size=1.0, half=half) for i in (1, 2))
    slopes = noise(tokens, 2, 32, seed=seed + 3, size=1.0, half=half)
    exact = heads.detach().double().requires_grad_()
    (expected,) = gradients(rope.rotate(exact, cos.double(), sin.double()), slopes.double(), exact)
    (ours,) = gradients(rotate(heads, cos, sin, way), slopes, heads)
    assert_close(ours, expected, float(expected.abs().max()))
