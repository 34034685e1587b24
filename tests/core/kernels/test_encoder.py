"""Kernels of the encoders: every path equals the formula for any shapes and extreme values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.encoder import (
    ACTIVATIONS,
    QuantizedRows,
    Raw,
    activate,
    activate_bf16,
    add,
    attention,
    causal,
    norm,
    strided,
)
from tests.core.kernels.paths import here
from tests.fixtures.tensors import noise

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
EVERY = [(path, False) for path in here()] + [(-1, True)]
every_path = pytest.mark.parametrize(
    "path", EVERY, ids=[kernels.PATHS[path] for path, _ in EVERY[:-1]] + ["best"]
)
"""Arguments `isa` and `by_pairs` of `attention`: in float32 on each path, and as this CPU chooses."""


def reference(
    qkv: list[Tensor], heads: int, queries: list[int], keys: list[int], distances: Tensor | None
) -> Tensor:
    """Attention by its formula, in double precision."""
    outs = []
    for q, k, v in zip(*(t.double().split(queries) for t in qkv), strict=True):
        count = keys[len(outs)]
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k[:count], v[:count]))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if distances is not None:
            between = torch.arange(count) - torch.arange(q.shape[1])[:, None]
            scores = scores + distances.double()[:, between + distances.shape[1] // 2]
        outs.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(outs)


@every_path
@settings(max_examples=40, deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(1, 140), st.integers(0, 9)), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    channels=st.integers(1, 90),
    seed=st.integers(0, 99),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    far=st.booleans(),
)
def test_attention_is_that_of_the_formula(
    path: tuple[int, bool],
    segments: list[tuple[int, int]],
    heads: int,
    channels: int,
    seed: int,
    size: float,
    far: bool,
) -> None:
    queries = [n for n, _ in segments]
    keys = [max(1, n - hidden) for n, hidden in segments]
    draw = torch.Generator().manual_seed(seed)
    qkv = [
        (size * torch.randn(sum(queries), heads * channels, generator=draw)).bfloat16()
        for _ in range(3)
    ]
    distances = torch.randn(heads, 2 * max(queries) - 1, generator=draw) if far else None
    y = attention(*qkv, heads, queries, keys, distances, isa=path[0], by_pairs=path[1])
    expected = reference(qkv, heads, queries, keys, distances)
    # Shares and the result are rounded to bfloat16: two units in the last place of the largest value.
    assert (y.double() - expected).abs().max() <= 2**-7 * qkv[2].abs().max()


@every_path
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_scales_and_biases_are_applied(path: tuple[int, bool], scaled: bool, biased: bool) -> None:
    """Products of our own kernels have a bias and no scale, those of oneDNN both."""
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(50, 3 * 144, generator=draw).bfloat16()
    scale, bias = torch.rand(50, generator=draw), torch.randn(3 * 144, generator=draw)
    value = raw * scale[:, None] if scaled else raw.float()
    value = (value + bias if biased else value).bfloat16()
    options = scale if scaled else None, bias.split(144) if biased else None
    y, expected = (
        attention(*t.split(144, 1), 2, [20, 30], [20, 28], None, s, b, *path)
        for t, s, b in ((raw, *options), (value, None, None))
    )
    assert (y.double() - expected.double()).norm() < 0.01 * expected.double().norm()


@every_path
def test_a_segment_does_not_depend_on_its_neighbours(path: tuple[int, bool]) -> None:
    q, k, v = torch.randn(3, 200, 72, generator=torch.Generator().manual_seed(0)).bfloat16()
    batched = attention(q, k, v, 1, [70, 130], [70, 100], None, None, None, *path)
    for part, count in ((slice(0, 70), 70), (slice(70, 200), 100)):
        rows = [part.stop - part.start]
        alone = attention(q[part], k[part], v[part], 1, rows, [count], None, None, None, *path)
        assert torch.equal(alone, batched[part])


@every_path
def test_extreme_scores_are_shares(path: tuple[int, bool]) -> None:
    """One key has all the weight if logits are far apart, and all have equal weight if logits are equal and large."""
    q = torch.full((3, 16), 100.0).bfloat16()
    k = torch.full((3, 16), 100.0).bfloat16()
    v = torch.tensor([1.0, 2.0, 6.0])[:, None].expand(3, 16).bfloat16()
    v, isa, by_pairs = v.contiguous(), *path
    y = attention(q, k, v, 1, [3], [3], isa=isa, by_pairs=by_pairs)
    assert y.unique().tolist() == [3.0]
    k[1] = -100
    k[2] = 99
    y = attention(q, k, v, 1, [3], [3], isa=isa, by_pairs=by_pairs)
    assert y.unique().tolist() == [1.0]


@every_path
def test_queries_without_keys_get_zeros(path: tuple[int, bool]) -> None:
    q, k, v = torch.ones(3, 5, 16).bfloat16()
    y = attention(q, k, v, 1, [2, 3], [0, 3], None, None, None, *path)
    assert y.sum(1).tolist() == [0, 0, 16, 16, 16]


# ---------------------------------------------------------------------- between products of 8 bits


on_every_path = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)
shapes = {
    "rows": st.integers(1, 11),
    "vectors": st.integers(1, 6),
    "seed": st.integers(0, 99),
    "size": st.sampled_from([1e-3, 1.0, 30.0]),
}


def raw(rows: int, width: int, seed: int, size: float) -> tuple[Raw, Tensor]:
    """A product with a large value in its first row and zeros in its last, and its value in double precision."""
    y = noise(rows, width, seed=seed).bfloat16()
    y[0, 0] *= 50
    y[-1] = 0
    scale = size * (0.5 + noise(rows, seed=seed + 1).sigmoid())
    bias = size * noise(width, seed=seed + 2)
    return Raw(y, scale, bias), y.double() * scale.double()[:, None] + bias.double()


def assert_near(rows: QuantizedRows, expected: Tensor) -> None:
    """Bytes are nearest to the formula's values, except where float32 rounds a value close to halfway otherwise."""
    step = (expected.abs().amax(1) / 127).clamp(min=1e-12)
    torch.testing.assert_close(rows.scale.double(), step, rtol=1e-4, atol=1e-9)
    q = rows.q.double() - 128
    assert q.abs().max() <= 127
    assert ((q * step[:, None] - expected).abs() <= 0.51 * step[:, None] + 1e-9).all()


@on_every_path
@settings(max_examples=25, deadline=None)
@given(**shapes, factor=st.sampled_from([0.5, 1.0]))
def test_norms_equal_those_of_the_sum(
    path: int, rows: int, vectors: int, seed: int, size: float, factor: float
) -> None:
    width = 16 * vectors
    product, value = raw(rows, width, seed, size)
    x = noise(rows, width, seed=seed + 3).bfloat16()
    weight, bias = noise(2, width, seed=seed + 4)
    total, normed = norm(x, weight, bias, 1e-6, product, factor, path)
    exact = x.double() + factor * value
    assert ((total.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
    expected = F.layer_norm(total.double(), (width,), weight.double(), bias.double(), 1e-6)
    assert_near(normed, expected)
    assert_near(norm(total, weight, bias, 1e-6, isa=path)[1], expected)
    assert torch.equal(add(x, product, factor, isa=path), total)
    both = add(x, product, factor, (weight, bias, 1e-6), path).double()
    assert ((both - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


def activation(kind: str, x: Tensor) -> Tensor:
    match kind:
        case "relu":
            return x.relu()
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x, approximate="tanh")
        case "gated":
            value, gate = x.chunk(2, 1)
            return value * F.silu(gate)
    return x


@on_every_path
@pytest.mark.parametrize("kind", ACTIVATIONS)
@settings(max_examples=15, deadline=None)
@given(**shapes)
def test_activations_equal_the_formula(
    path: int, kind: str, rows: int, vectors: int, seed: int, size: float
) -> None:
    product, value = raw(rows, 32 * vectors, seed, size)
    expected = activation(kind, value)
    assert_near(activate(kind, product, path), expected)
    y = activate_bf16(kind, product, path).double()
    assert ((y - expected).abs() <= 2**-7 * expected.abs() + 1e-4 * expected.abs().max()).all()
    # Rows may be parts of wider ones.
    wide = product._replace(y=torch.cat([product.y, product.y], 1)[:, : 32 * vectors])
    assert torch.equal(activate(kind, wide, path).q, activate(kind, product, path).q)


def test_activations_of_the_largest_numbers() -> None:
    far = torch.tensor([[-1e30, 1e30, -100.0, 100.0, -20.0, 0.0] + [0.0] * 10]).bfloat16()
    assert activate_bf16("silu", Raw(far))[0, :6].tolist() == pytest.approx(
        [0, float(far[0, 1]), 0, 100, -20 * 2.06e-9, 0], rel=1e-2, abs=1e-6
    )


@on_every_path
@settings(max_examples=25, deadline=None)
@given(
    windows=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    width=st.integers(1, 5),
    vectors=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_causal_convolutions_stay_in_their_windows(
    path: int, windows: list[int], width: int, vectors: int, seed: int
) -> None:
    channels = 16 * vectors
    x = noise(sum(windows), channels, seed=seed).bfloat16()
    taps, bias = noise(width, channels, seed=seed + 1), noise(channels, seed=seed + 2)
    age = torch.cat([torch.arange(n) for n in windows])
    padded = [F.pad(part.double().t(), (width - 1, 0)) for part in x.split(windows)]
    expected = [
        F.conv1d(p, taps.double().t()[:, None], bias.double(), groups=channels).t() for p in padded
    ]
    assert_near(causal(x, taps, bias, age, path), torch.cat(expected))


@on_every_path
@settings(max_examples=15, deadline=None)
@given(
    times=st.integers(1, 12),
    bands=st.integers(1, 9),
    vectors=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_strided_convolutions_equal_the_formula(
    path: int, times: int, bands: int, vectors: int, seed: int
) -> None:
    """After another one over frames, and after a product, with some input times zero."""
    channels, halves = 16 * vectors, (-(-times // 2), -(-bands // 2))
    frames = noise(times, bands, seed=seed)
    first, second = noise(2, 9, channels, seed=seed + 1)
    shifts = noise(2, channels, seed=seed + 2)
    occupied = noise(halves[0], seed=seed + 3) > -0.5

    def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[channels, times, bands], one channel or all of them."""
        weight = weight.double().t().view(channels, 1, 3, 3)
        return F.conv2d(x[None], weight, bias.double(), 2, 1, groups=len(x))[0]

    def second_convolution(x: Tensor) -> Tensor:
        x = convolved(x.relu() * occupied[:, None], second, shifts[1])
        return x.permute(1, 2, 0).reshape(-1, channels)

    rows = strided((frames, first, shifts[0]), occupied, second, shifts[1], isa=path)
    assert_near(rows, second_convolution(convolved(frames.double()[None], first, shifts[0])))
    product, value = raw(halves[0] * halves[1], channels, seed, 1.0)
    rows = strided(product, occupied, second, shifts[1], isa=path)
    expected = second_convolution(value.t().reshape(channels, *halves))
    assert_near(rows, expected)
    y = strided(product, occupied, second, shifts[1], eight_bits=False, isa=path)
    # Rounded once to bfloat16, after float32 sums of values up to the largest.
    limit = 2**-8 * expected.abs() + 1e-5 * expected.abs().max()
    assert ((y.double() - expected).abs() <= limit).all()
