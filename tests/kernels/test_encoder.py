"""Pieces of the encoders: every path gives what the formula gives, whatever the shapes and however extreme."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.paths import here
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.encoder import (
    ACTIVATIONS,
    Raw,
    Rows,
    activate,
    add,
    attention,
    causal,
    finished,
    norm,
    strided,
)

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
EVERY = [(path, False) for path in here()] + [(-1, True)]
every_path = pytest.mark.parametrize(
    "path", EVERY, ids=[kernels.PATHS[path] for path, _ in EVERY[:-1]] + ["best"]
)
"""Arguments `isa` and `by_pairs` of `attention`: in float32 on each path, and as this CPU chooses."""


def attended(
    qkv: list[Tensor], heads: int, queries: list[int], keys: list[int], distances: Tensor | None
) -> Tensor:
    """Attention as its formula says, in double precision."""
    outs = []
    for q, k, v in zip(*(t.double().split(queries) for t in qkv), strict=True):
        seen = keys[len(outs)]
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k[:seen], v[:seen]))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if distances is not None:
            between = torch.arange(seen) - torch.arange(q.shape[1])[:, None]
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
    found = attention(*qkv, heads, queries, keys, distances, isa=path[0], by_pairs=path[1])
    wanted = attended(qkv, heads, queries, keys, distances)
    # Shares and the result are rounded to bfloat16: two units in the last place of the largest value.
    assert (found.double() - wanted).abs().max() <= 2**-7 * qkv[2].abs().max()


@every_path
def test_products_owe_their_scales_and_bias(path: tuple[int, bool]) -> None:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(50, 3 * 144, generator=draw).bfloat16()
    scale, bias = torch.rand(50, generator=draw), torch.randn(3 * 144, generator=draw)
    paid = (raw * scale[:, None] + bias).bfloat16()
    found, wanted = (
        attention(*t.split(144, 1), 2, [20, 30], [20, 28], None, s, b, *path)
        for t, s, b in ((raw, scale, bias.split(144)), (paid, None, None))
    )
    assert (found.double() - wanted.double()).norm() < 0.01 * wanted.double().norm()


@every_path
def test_a_segment_is_the_same_whatever_stands_beside_it(path: tuple[int, bool]) -> None:
    q, k, v = torch.randn(3, 200, 72, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = attention(q, k, v, 1, [70, 130], [70, 100], None, None, None, *path)
    for part, seen in ((slice(0, 70), 70), (slice(70, 200), 100)):
        rows = [part.stop - part.start]
        alone = attention(q[part], k[part], v[part], 1, rows, [seen], None, None, None, *path)
        assert torch.equal(alone, together[part])


@every_path
def test_extreme_scores_are_shares(path: tuple[int, bool]) -> None:
    """One key takes all where scores are far apart, and all share where they are far from 0 together."""
    q = torch.full((3, 16), 100.0).bfloat16()
    k = torch.full((3, 16), 100.0).bfloat16()
    v = torch.tensor([1.0, 2.0, 6.0])[:, None].expand(3, 16).bfloat16()
    v, isa, by_pairs = v.contiguous(), *path
    found = attention(q, k, v, 1, [3], [3], isa=isa, by_pairs=by_pairs)
    assert found.unique().tolist() == [3.0]
    k[1] = -100
    k[2] = 99
    found = attention(q, k, v, 1, [3], [3], isa=isa, by_pairs=by_pairs)
    assert found.unique().tolist() == [1.0]


@every_path
def test_who_sees_nothing_gets_nothing(path: tuple[int, bool]) -> None:
    q, k, v = torch.ones(3, 5, 16).bfloat16()
    found = attention(q, k, v, 1, [2, 3], [0, 3], None, None, None, *path)
    assert found.sum(1).tolist() == [0, 0, 16, 16, 16]


# ---------------------------------------------------------------------- between products of 8 bits


on_every_path = pytest.mark.parametrize("path", here(), ids=kernels.PATHS.__getitem__)
shapes = {
    "rows": st.integers(1, 11),
    "vectors": st.integers(1, 6),
    "seed": st.integers(0, 99),
    "size": st.sampled_from([1e-3, 1.0, 30.0]),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def raw(rows: int, width: int, seed: int, size: float) -> tuple[Raw, Tensor]:
    """A product with a large value in its first row and nothing in its last, and what it means."""
    y = noise(rows, width, seed=seed).bfloat16()
    y[0, 0] *= 50
    y[-1] = 0
    scale = size * (0.5 + noise(rows, seed=seed + 1).sigmoid())
    bias = size * noise(width, seed=seed + 2)
    return Raw(y, scale, bias), y.double() * scale.double()[:, None] + bias.double()


def near(found: Rows, wanted: Tensor) -> None:
    """Bytes are the nearest to the formula's values, which a float32 close to halfway may miss."""
    step = (wanted.abs().amax(1) / 127).clamp(min=1e-12)
    torch.testing.assert_close(found.scale.double(), step, rtol=1e-4, atol=1e-9)
    q = found.q.double() - 128
    assert q.abs().max() <= 127
    assert ((q * step[:, None] - wanted).abs() <= 0.51 * step[:, None] + 1e-9).all()


@on_every_path
@settings(max_examples=25, deadline=None)
@given(**shapes, factor=st.sampled_from([0.5, 1.0]))
def test_norms_are_those_of_the_sum(
    path: int, rows: int, vectors: int, seed: int, size: float, factor: float
) -> None:
    width = 16 * vectors
    owed, meant = raw(rows, width, seed, size)
    x = noise(rows, width, seed=seed + 3).bfloat16()
    weight, bias = noise(2, width, seed=seed + 4)
    total, normed = norm(x, weight, bias, 1e-6, owed, factor, path)
    exact = x.double() + factor * meant
    assert ((total.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
    wanted = F.layer_norm(total.double(), (width,), weight.double(), bias.double(), 1e-6)
    near(normed, wanted)
    near(norm(total, weight, bias, 1e-6, isa=path)[1], wanted)
    assert torch.equal(add(x, owed, factor, isa=path), total)
    both = add(x, owed, factor, (weight, bias, 1e-6), path).double()
    assert ((both - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5).all()


def activated(kind: str, x: Tensor) -> Tensor:
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
def test_activations_are_those_of_the_formula(
    path: int, kind: str, rows: int, vectors: int, seed: int, size: float
) -> None:
    owed, meant = raw(rows, 32 * vectors, seed, size)
    wanted = activated(kind, meant)
    near(activate(kind, owed, path), wanted)
    found = finished(kind, owed, path).double()
    assert ((found - wanted).abs() <= 2**-7 * wanted.abs() + 1e-4 * wanted.abs().max()).all()
    # rows may be part of wider ones
    wide = torch.cat([owed.y, owed.y], 1)[:, : 32 * vectors]
    assert torch.equal(activate(kind, owed._replace(y=wide), path).q, activate(kind, owed, path).q)


def test_activations_bear_the_largest_numbers() -> None:
    far = torch.tensor([[-1e30, 1e30, -100.0, 100.0, -20.0, 0.0] + [0.0] * 10]).bfloat16()
    assert finished("silu", Raw(far))[0, :6].tolist() == pytest.approx(
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
    wanted = [
        F.conv1d(p, taps.double().t()[:, None], bias.double(), groups=channels).t() for p in padded
    ]
    near(causal(x, taps, bias, age, path), torch.cat(wanted))


@on_every_path
@settings(max_examples=15, deadline=None)
@given(
    times=st.integers(1, 12),
    bands=st.integers(1, 9),
    vectors=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_strided_convolutions_are_those_of_the_formula(
    path: int, times: int, bands: int, vectors: int, seed: int
) -> None:
    """Behind another one over frames, and behind a product, some times of it blank."""
    channels, halves = 16 * vectors, (-(-times // 2), -(-bands // 2))
    frames = noise(times, bands, seed=seed)
    first, second = noise(2, 9, channels, seed=seed + 1)
    shifts = noise(2, channels, seed=seed + 2)
    heard = noise(halves[0], seed=seed + 3) > -0.5

    def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[channels, times, bands], one channel or all of them."""
        weight = weight.double().t().view(channels, 1, 3, 3)
        return F.conv2d(x[None], weight, bias.double(), 2, 1, groups=len(x))[0]

    def behind(x: Tensor) -> Tensor:
        x = convolved(x.relu() * heard[:, None], second, shifts[1])
        return x.permute(1, 2, 0).reshape(-1, channels)

    found = strided((frames, first, shifts[0]), heard, second, shifts[1], isa=path)
    near(found, behind(convolved(frames.double()[None], first, shifts[0])))
    owed, meant = raw(halves[0] * halves[1], channels, seed, 1.0)
    found = strided(owed, heard, second, shifts[1], isa=path)
    expected = behind(meant.t().reshape(channels, *halves))
    near(found, expected)
    found = strided(owed, heard, second, shifts[1], eight_bits=False, isa=path)
    # rounded once to bfloat16, besides sums in float32 of values up to the largest
    limit = 2**-8 * expected.abs() + 1e-5 * expected.abs().max()
    assert ((found.double() - expected).abs() <= limit).all()
