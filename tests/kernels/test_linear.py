"""Kernels of 4 and 8 bits: every path gives what the formula gives, whatever the shapes and extreme the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.paths import here
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.linear import GROUP, Four, add, linear, pack4, pack8, unpack4, unpack8

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))


PATHS = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)


def random_four(outputs: int, inputs: int, seed: int) -> Four:
    draw = torch.Generator().manual_seed(seed)
    pairs = (outputs, inputs // GROUP)
    return Four(
        torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=draw),
        *(torch.randint(0, 256, pairs, dtype=torch.uint8, generator=draw) for _ in range(2)),
    )


def random_eight(outputs: int, inputs: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=draw)


def meant(weight: Four | Tensor, row: Tensor) -> Tensor:
    """The weight in double precision."""
    if isinstance(weight, Tensor):
        return weight.double() * row.double()[:, None]
    groups = weight.q.double().view(*weight.s.shape, GROUP)
    w = (groups - weight.z.double()[..., None] / 16) * weight.s.double()[..., None]
    return w.view(weight.q.shape) * row.double()[:, None]


def activations(x: Tensor) -> Tensor:
    """As they are rounded, to whole numbers of which a token's largest is 127; in double precision."""
    step = (x.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    return (x.float() * (1 / step)).round().double() * step.double()


@PATHS
@settings(max_examples=40)
@given(
    bits=st.sampled_from([4, 8]),
    tokens=st.integers(1, 19),
    outputs=st.integers(1, 80),
    inputs=st.integers(1, 200),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
    half=st.booleans(),
    biased=st.booleans(),
)
def test_products_are_those_of_the_formula(
    path: int,
    bits: int,
    tokens: int,
    outputs: int,
    inputs: int,
    seed: int,
    size: float,
    half: bool,
    biased: bool,
) -> None:
    if bits == 4:
        inputs = GROUP * -(-inputs // GROUP)
    weight = (random_four if bits == 4 else random_eight)(outputs, inputs, seed)
    packed = pack4(weight) if isinstance(weight, Four) else pack8(weight)
    draw = torch.Generator().manual_seed(seed + 1)
    row = torch.rand(outputs, generator=draw) + 0.1
    bias = size * torch.randn(outputs, generator=draw) if biased else None
    x = size * torch.randn(tokens, inputs, generator=draw)
    x = x.bfloat16() if half else x
    x[tokens // 2] = 0
    x[-1, :5] *= 1000
    found = linear(x, packed, row, bits=bits, bias=bias, isa=path)
    wanted = activations(x) @ meant(weight, row).t() + (0 if bias is None else bias.double())
    assert found.dtype == x.dtype
    # Float32 adds what a group makes, up to 7 terms: some units in the last place of the largest result that the
    # numbers allow. bfloat16 rounds the result.
    most = activations(x).abs() @ meant(weight, row).abs().t() + wanted.abs() + 1e-30
    allowed = 5e-3 if half else 2e-6
    assert ((found.double() - wanted).abs() / most).max() < allowed
    y = size * torch.randn(tokens, outputs, generator=draw).to(x.dtype)
    wanted = y.double() - 0.5 * (wanted - (0 if bias is None else bias.double()))
    onto = y.clone()
    assert add(onto, x, packed, row, bits=bits, scale=-0.5, isa=path) is onto
    assert ((onto.double() - wanted).abs() / (most + y.abs())).max() < allowed


def test_the_largest_sums_fit() -> None:
    """All weights and activations at their ends, as many inputs as the model has."""
    x = torch.ones(3, 8192)
    x[1] = -1
    x[2, ::2] = -1
    for q, z in ((0, 255), (15, 0)):
        weight = Four(
            *(
                torch.full((32, n), v, dtype=torch.uint8)
                for n, v in ((8192, q), (256, 255), (256, z))
            )
        )
        for path in here():
            found = linear(x, pack4(weight), torch.ones(32), bits=4, isa=path)
            torch.testing.assert_close(
                found.double(), x.double() @ meant(weight, torch.ones(32)).t(), rtol=1e-5, atol=10
            )
    for end in (-127, 127):
        eight = torch.full((32, 8192), end, dtype=torch.int8)
        for path in here():
            found = linear(x, pack8(eight), torch.ones(32), bits=8, isa=path)
            torch.testing.assert_close(
                found.double(), x.double() @ eight.double().t(), rtol=1e-6, atol=1e-2
            )


@pytest.mark.parametrize("bits", [4, 8])
def test_paths_differ_by_nothing(bits: int) -> None:
    x, row = torch.randn(11, 3072), torch.rand(64)
    packed = pack4(random_four(64, 3072, 0)) if bits == 4 else pack8(random_eight(64, 3072, 0))
    found = [linear(x, packed, row, bits=bits, isa=path) for path in here()]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [20, 300])
def test_a_token_is_the_same_whatever_stands_beside_it(bits: int, tokens: int) -> None:
    x, row = torch.randn(tokens, 96), torch.rand(48)
    packed = pack4(random_four(48, 96, 0)) if bits == 4 else pack8(random_eight(48, 96, 0))
    x[3] *= 1e4
    together = linear(x, packed, row, bits=bits)
    for i in (0, 3, 4, 19, tokens - 1):
        assert torch.equal(linear(x[i : i + 1], packed, row, bits=bits)[0], together[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_number_stays_with_its_token(bits: int, dtype: torch.dtype) -> None:
    x, row = torch.randn(7, 96, dtype=dtype), torch.rand(48)
    packed = pack4(random_four(48, 96, 0)) if bits == 4 else pack8(random_eight(48, 96, 0))
    wanted = linear(x, packed, row, bits=bits)
    x[1, 5], x[4, 0], x[6, 95] = torch.nan, torch.inf, -torch.inf
    for path in here():
        found = linear(x, packed, row, bits=bits, isa=path)
        assert found[[1, 4, 6]].isnan().all()
        torch.testing.assert_close(found[[0, 2, 3, 5]], wanted[[0, 2, 3, 5]])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 3e38])
def test_the_smallest_and_largest_activations_are_numbers(size: float) -> None:
    x = torch.full((2, 64), size)
    for path in here():
        found = linear(
            x, pack8(torch.ones(8, 64, dtype=torch.int8)), torch.full((8,), 1e-3), bits=8, isa=path
        )
        torch.testing.assert_close(
            found.double(),
            (x.double() * 64e-3).sum(1, keepdim=True).expand(2, 8) / 64,
            rtol=0.01,
            atol=1e-30,
        )


def test_strides_and_fallow_memory_change_nothing() -> None:
    wide, row = torch.randn(9, 200), torch.rand(40)
    packed = pack8(random_eight(40, 100, 0))
    torch.testing.assert_close(
        linear(wide[:, ::2], packed, row, bits=8), linear(wide[:, ::2].clone(), packed, row, bits=8)
    )


@given(outputs=st.integers(1, 70), groups=st.integers(1, 5), seed=st.integers(0, 9))
def test_packing_keeps_everything(outputs: int, groups: int, seed: int) -> None:
    four, eight = (
        random_four(outputs, GROUP * groups, seed),
        random_eight(outputs, 31 * groups, seed),
    )
    for found, put in zip(unpack4(pack4(four), *four.q.shape), four, strict=True):
        assert torch.equal(found, put)
    assert torch.equal(unpack8(pack8(eight), *eight.shape), eight)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs"):
        pack4(Four(*(torch.ones(16, n, dtype=torch.uint8) for n in (33, 1, 1))))
    with pytest.raises(ValueError, match="expected 2304 bytes of a packed weight, found 576"):
        linear(torch.ones(1, 64), torch.zeros(576, dtype=torch.uint8), torch.ones(64), bits=4)
    with pytest.raises(ValueError, match="expected 2048 bytes"):
        unpack8(torch.zeros(5, dtype=torch.uint8), 32, 64)
    packed, row = pack8(random_eight(32, 64, 0)), torch.ones(32)
    for sums in (torch.ones(2, 32), torch.ones(1, 32).bfloat16(), torch.ones(1, 64)[:, ::2]):
        with pytest.raises(ValueError, match=r"a contiguous sum of \[1 32\] in torch.float32"):
            add(sums, torch.ones(1, 64), packed, row, bits=8, scale=1.0)
