"""Kernels of 4 bits: every path gives what the formula gives, whatever the shapes and however extreme the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.linear import GROUP, linear, pack

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
PATHS = range(len(kernels.PATHS))


def here(path: int) -> bool:
    """Whether this CPU has a path: of x86's all up to the best, and the scalar one always."""
    best = kernels.PATHS.index(kernels.path())
    return path in (0, best) or (path < best and kernels.path() != "NEON")


def weights(outputs: int, inputs: int, seed: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=draw)
    pairs = size * torch.randn(2, outputs, inputs // GROUP, generator=draw)
    return q, *pairs.bfloat16()


def meant(x: Tensor, q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """In double precision, of activations as they are rounded: to whole numbers of which a token's largest is 127."""
    w = (q.double().view(*scale.shape, -1) - 8) * scale.double()[..., None]
    w = (w + zero.double()[..., None]).view(q.shape)
    step = (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (x * (1 / step)).round().clamp(-127, 127).double() * step.double() @ w.t()


@pytest.mark.parametrize("path", [p for p in PATHS if here(p)], ids=kernels.PATHS.__getitem__)
@settings(max_examples=40)
@given(
    tokens=st.integers(1, 19),
    panels=st.integers(1, 5),
    groups=st.integers(1, 7),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
    half=st.booleans(),
)
def test_products_are_those_of_the_formula(
    path: int, tokens: int, panels: int, groups: int, seed: int, size: float, half: bool
) -> None:
    held = weights(16 * panels, 32 * groups, seed, size)
    x = size * torch.randn(tokens, 32 * groups, generator=torch.Generator().manual_seed(seed + 1))
    x = x.bfloat16() if half else x
    x[tokens // 2] = 0
    x[-1, :5] *= 1000
    found = linear(x, pack(*held), 16 * panels, path)
    wanted = meant(x.float(), *held)
    assert found.dtype == x.dtype
    # Sums of up to 14 terms in float32: a few units in the last place of the largest; bfloat16 rounds the result.
    most = wanted.abs().amax(1, keepdim=True) + 1e-30
    assert ((found.double() - wanted).abs() / most).max() < (5e-3 if half else 2e-6)


def test_paths_differ_by_nothing() -> None:
    x, held = torch.randn(11, 3072), weights(64, 3072, 0, 0.02)
    packed = pack(*held)
    found = [linear(x, packed, 64, path) for path in PATHS if here(path)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-6)


def test_a_token_is_the_same_whatever_stands_beside_it() -> None:
    x, packed = torch.randn(20, 96), pack(*weights(48, 96, 0, 1.0))
    x[3] *= 1e4
    together = linear(x, packed, 48)
    for i in range(20):
        assert torch.equal(linear(x[i : i + 1], packed, 48)[0], together[i])


def test_extreme_weights_and_activations_add_up() -> None:
    """All nibbles 15 or 0 against activations at both ends of 8 bits, over a long row."""
    q = torch.full((16, 8192), 15, dtype=torch.uint8)
    q[8:] = 0
    scale, zero = torch.ones(16, 256).bfloat16(), torch.zeros(16, 256).bfloat16()
    x = torch.full((2, 8192), 127.0)
    x[1] = -127
    found = linear(x, pack(q, scale, zero), 16)
    assert found[0].tolist() == [7.0 * 127 * 8192] * 8 + [-8.0 * 127 * 8192] * 8
    assert torch.equal(found[1], -found[0])


def test_shapes_that_do_not_fit_are_refused() -> None:
    for outputs, inputs in ((15, 32), (16, 33)):
        with pytest.raises(ValueError, match="multiples of 16 outputs and 32 inputs"):
            pack(
                torch.zeros(outputs, inputs, dtype=torch.uint8),
                torch.ones(16, 1),
                torch.ones(16, 1),
            )
