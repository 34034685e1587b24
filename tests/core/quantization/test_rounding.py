"""Rounding to 4 bits: never worse than round-to-nearest, and better with a Hessian."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi.kernels.linear import GROUP
from polyphi.quantization import rounding
from polyphi.quantization.rounding import Rounded, four_bits, nearest


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(outputs: int, inputs: int, seed: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=generator(seed))


def outliers(outputs: int, inputs: int, seed: int) -> Tensor:
    w = normal(outputs, inputs, seed)
    return torch.where(torch.rand(w.shape, generator=generator(seed + 1)) < 0.02, 100 * w, w)


WEIGHTS: dict[str, Callable[[int, int, int], Tensor]] = {
    "normal": normal,
    "outliers": outliers,
    "one large row": lambda o, i, seed: (
        normal(o, i, seed) * torch.tensor([1e4] + [1] * (o - 1))[:, None]
    ),
    "one large group": lambda o, i, seed: torch.cat(
        [1e3 * normal(o, GROUP, 0), normal(o, i, seed)], 1
    ),
    "constant": lambda o, i, seed: torch.full((o, i), normal(1, 1, seed).item()),
    "zero": lambda o, i, seed: torch.zeros(o, i),
    "some rows zero": lambda o, i, seed: normal(o, i, seed) * (torch.arange(o) % 2)[:, None],
    "positive": lambda o, i, seed: normal(o, i, seed).abs() + 1,
    "negative": lambda o, i, seed: -normal(o, i, seed).abs(),
    "two values": lambda o, i, seed: normal(o, i, seed).sign(),
}


def errors(rounded: Rounded, w: Tensor) -> Tensor:
    """Squared error of every group, in units of the row's largest weight."""
    size = w.double().abs().amax(1, keepdim=True).clamp(min=1e-300)
    difference = (rounded.weight().double() - w.double()) / size
    return difference.square().view(len(w), -1, GROUP).sum(2)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(WEIGHTS)),
    outputs=st.integers(1, 9),
    groups=st.integers(1, 5),
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-36, 1e-12, 1.0, 1e12, 1e33]),
    half=st.booleans(),
)
def test_no_group_has_a_larger_error_than_round_to_nearest(
    kind: str, outputs: int, groups: int, seed: int, size: float, half: bool
) -> None:
    w = size * WEIGHTS[kind](outputs, GROUP * groups, seed)
    w = w.bfloat16() if half else w
    rounded = four_bits(w)
    assert rounded.four.q.max() <= 15
    assert rounded.weight().isfinite().all()
    # With a tolerance, since errors are compared in float32.
    assert (errors(rounded, w) <= errors(nearest(w), w) * (1 + 1e-4) + 1e-11).all()


@pytest.mark.parametrize("kind", ["zero", "constant", "two values"])
def test_representable_weights_are_exact(kind: str) -> None:
    w = WEIGHTS[kind](4, 2 * GROUP, 3)
    assert torch.allclose(four_bits(w).weight(), w, rtol=3e-3, atol=0)


def test_the_search_reduces_the_squared_error_of_normal_weights_by_a_sixth() -> None:
    w = normal(256, 1024, 0)
    least, most = (float(errors(f(w), w).sum()) for f in (four_bits, nearest))
    assert least < 0.84 * most


def correlated(tokens: int, inputs: int, seed: int) -> Tensor:
    """Inputs with some large correlated channels, as after a norm."""
    x = normal(tokens, 6, seed) @ normal(6, inputs, seed + 1)
    return x + 0.3 * normal(tokens, inputs, seed + 2) + 0.5


@pytest.mark.parametrize("outputs", [1, 40])
@pytest.mark.parametrize("inputs", [GROUP, 96, 320])
def test_a_hessian_reduces_the_error_of_products(outputs: int, inputs: int) -> None:
    w, x, unseen = normal(outputs, inputs, 0), *correlated(900, inputs, 1).split(600)
    alone, calibrated = (four_bits(w, h) for h in (None, x.t() @ x))
    errors = [float((unseen @ (f.weight() - w).t()).square().sum()) for f in (alone, calibrated)]
    assert errors[1] < 0.5 * errors[0]


def test_singular_and_zero_hessians() -> None:
    w, x = normal(8, 96, 0), normal(2, 96, 1)
    x[:, 5:40] = 0
    for hessian in (x.t() @ x, 1e12 * x.t() @ x, 1e-12 * x.t() @ x, torch.zeros(96, 96)):
        rounded = four_bits(w, hessian).weight()
        assert (rounded - w).norm() < 0.2 * w.norm()


def same(one: Rounded, other: Rounded) -> bool:
    pairs = zip((*one.four, one.row), (*other.four, other.row), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_outputs_are_rounded_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = normal(24, 96, 0), correlated(200, 96, 1)
    for hessian in (None, x.t() @ x):
        whole = four_bits(w, hessian)
        monkeypatch.setattr(rounding, "CHUNK_ROWS", 10)
        assert same(whole, four_bits(w, hessian))
        monkeypatch.undo()


def test_the_same_weights_give_the_same_bits() -> None:
    w, x = normal(40, 320, 0), correlated(500, 320, 1)
    for hessian in (None, x.t() @ x):
        assert same(four_bits(w, hessian), four_bits(w.clone(), hessian))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_raise(bad: float) -> None:
    w, h = normal(4, GROUP, 0), torch.eye(GROUP)
    w[2, 3] = h[3, 3] = bad
    with pytest.raises(ValueError, match=r"weights .*NaN"):
        four_bits(w)
    with pytest.raises(ValueError, match=r"Hessian .*NaN"):
        four_bits(torch.ones(4, GROUP), h)


def test_shapes_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=r"multiple of 32 inputs, found 40"):
        four_bits(torch.ones(4, 40))
    with pytest.raises(ValueError, match=r"64 x 64 .* found 32 x 32"):
        four_bits(torch.ones(4, 64), torch.eye(32))
