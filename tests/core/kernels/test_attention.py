"""Attention over the block cache: every path equals the formula for any shapes, lengths and blocks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi import kernels
from polyphi.kernels.attention import BLOCK, BlockLayout, KVLayer, attend, pairs
from tests.core.kernels.paths import here

pytestmark = pytest.mark.skipif(kernels.missing() is not None, reason=str(kernels.missing()))
BEST = here()[-1]
PAIRS = [(path, 0) for path in here() if kernels.PATHS[path] != "AVX-VNNI"]
PAIRS += [(BEST, 1)] if pairs() else []
# Plain code takes 20 s: only where it is what runs, and in make test-all.
WAYS = [
    pytest.param(
        (path, by),
        id=kernels.PATHS[path] + " BF16" * by,
        marks=[pytest.mark.long] if path == 0 != BEST else [],
    )
    for path, by in PAIRS
]


def memory(blocks: int, heads: int, d: int, dtype: torch.dtype) -> KVLayer:
    """A layer filled with values that must not be read."""

    def rows(*width: int, dtype: torch.dtype) -> Tensor:
        filled = torch.full((heads, blocks * BLOCK, *width), 77.0).to(dtype)
        return (filled if dtype == torch.int8 else filled * math.nan).transpose(0, 1)

    scales = [rows(dtype=torch.float32) for _ in range(2 if dtype == torch.int8 else 0)]
    return KVLayer(rows(d, dtype=dtype), rows(d, dtype=dtype), *scales)


def cached(layer: KVLayer, table: list[int], new: Tensor, which: int) -> Tensor:
    """Keys (`which` 0) or values (1) [n K d] as stored, after checking that they are close to the new ones."""
    rows = [table[t // BLOCK] * BLOCK + t % BLOCK for t in range(len(new))]
    stored, scales = layer[which][rows].double(), layer[which + 2]
    if scales is None:
        assert torch.equal(stored, new.double())
        return stored
    step = scales[rows].double()[..., None]
    assert ((stored * step - new.double()).abs() <= 0.5001 * step).all()
    assert (stored.abs().amax(-1) == 127).all()
    return stored * step


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The newest tokens' queries [t H d] against keys and values [n K d], in double precision."""
    (t, heads, d), (n, kv_heads, _) = q.shape, k.shape
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    scores = torch.einsum("thd,nhd->htn", q, k) / math.sqrt(d)
    future = torch.ones(t, n, dtype=torch.bool).triu(n - t + 1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("htn,nhd->thd", weights, v)


class Sequences:
    """Sequences that grow in one cache, in scattered blocks."""

    def __init__(self, lengths: list[int], shape: tuple[int, int, int], seed: int, size: float):
        self.draw = torch.Generator().manual_seed(seed)
        heads, kv_heads, d = shape
        self.whole = [
            [self._drawn(size, n, h, d) for h in (heads, kv_heads, kv_heads)] for n in lengths
        ]
        needed = [-(-n // BLOCK) for n in lengths]
        self.blocks = sum(needed) + 2
        some = torch.randperm(self.blocks, generator=self.draw)[: sum(needed)]
        self.tables = [t.tolist() for t in some.split(needed)]

    def _drawn(self, size: float, *shape: int) -> Tensor:
        return size * torch.randn(shape, generator=self.draw)

    def step(
        self, dtype: torch.dtype, layer: KVLayer, spans: list[tuple[int, int]], isa: int, by: int
    ) -> list[Tensor]:
        """The outputs for each sequence's tokens in its span, in one call."""
        mine = [i for i, (first, last) in enumerate(spans) if first < last]
        chosen = [[x[spans[i][0] : spans[i][1]] for x in self.whole[i]] for i in mine]
        # As in the decoder: keys follow queries in one tensor, and values are a part of a wider one.
        q, k, v = (torch.cat(part).to(dtype) for part in zip(*chosen, strict=True))
        heads = q.shape[1]
        both, wide = torch.cat([q, k], 1), torch.cat([q, k, v], 1)
        new = [spans[i][1] - spans[i][0] for i in mine]
        starts = torch.tensor([0, *new]).cumsum(0).tolist()
        layout = BlockLayout(starts, [spans[i][1] for i in mine], [self.tables[i] for i in mine])
        v = wide[:, both.shape[1] :]
        out = attend(both[:, :heads], both[:, heads:], v, layer, layout, isa, by)
        return list(out.split(new))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 31, 32, 33, 64, 200, 600]), min_size=1, max_size=3),
    new=st.lists(st.sampled_from([1, 1, 2, 4, 5, 22, 130, 2000]), min_size=3, max_size=3),
    shape=st.sampled_from([(3, 1, 128), (6, 2, 32), (4, 4, 16), (5, 1, 48), (6, 2, 64)]),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    half=st.booleans(),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-3, 1.0, 20.0]),
)
def test_attention_is_that_of_the_formula(
    way: tuple[int, int],
    lengths: list[int],
    new: list[int],
    shape: tuple[int, int, int],
    kind: torch.dtype,
    half: bool,
    seed: int,
    size: float,
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    sequences = Sequences(lengths, shape, seed, size)
    layer = memory(sequences.blocks, *shape[1:], torch.int8 if kind == torch.int8 else dtype)
    before = [max(0, n - m) for n, m in zip(lengths, new, strict=False)]
    if any(before):
        sequences.step(dtype, layer, [(0, n) for n in before], *way)
    outputs = sequences.step(dtype, layer, list(zip(before, lengths, strict=True)), *way)
    whole = zip(outputs, before, sequences.whole, sequences.tables, strict=True)
    for out, first, (q, k, v), table in whole:
        keys, values = (cached(layer, table, x.to(dtype), i) for i, x in enumerate((k, v)))
        expected = reference(q[first:].to(dtype), keys, values)
        assert out.dtype == dtype
        error = (out.double() - expected).abs().max() / expected.abs().max()
        # float32: logits of up to 20 * 20 * sqrt(128) have an error of 2 units in their last place, and so have the
        # weights; bfloat16 rounds results, and weights that are multiplied in pairs.
        assert error < (0.012 if half else 2e-5 if size < 10 else 1e-2), error


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    sequences = Sequences([700, 40, 1300], (6, 2, 32), 0, 1.0)
    for dtype in (torch.float32, torch.bfloat16):
        layer = memory(sequences.blocks, 2, 32, dtype)
        apart = memory(sequences.blocks, 2, 32, dtype)
        by = pairs()
        spans = [(0, 690), (0, 39), (0, 1299)]
        sequences.step(dtype, layer, spans, -1, by)
        for i, span in enumerate(spans):
            alone = [span if j == i else (0, 0) for j in range(3)]
            sequences.step(dtype, apart, alone, -1, by)
        spans = [(690, 700), (39, 40), (1299, 1300)]
        batched = sequences.step(dtype, layer, spans, -1, by)
        for i, span in enumerate(spans):
            alone = [span if j == i else (0, 0) for j in range(3)]
            assert torch.equal(sequences.step(dtype, apart, alone, -1, by)[0], batched[i])


def test_threads_change_nothing() -> None:
    sequences = Sequences([1500, 300], (6, 2, 32), 0, 1.0)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            layer = memory(sequences.blocks, 2, 32, torch.bfloat16)
            sequences.step(torch.bfloat16, layer, [(0, 1499), (0, 0)], -1, pairs())
            spans = [(1499, 1500), (0, 300)]
            results.append(sequences.step(torch.bfloat16, layer, spans, -1, pairs()))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", WAYS)
def test_nan_propagates(way: tuple[int, int]) -> None:
    """A NaN query affects its own token, and a NaN key all tokens that attend to it."""
    for length in (40, 8):
        sequences = Sequences([length], (3, 1, 16), 0, 1.0)
        sequences.whole[0][0][1] = math.nan
        sequences.whole[0][1][5] = math.nan
        layer = memory(sequences.blocks, 1, 16, torch.float32)
        steps = [(0, 4), (4, 8)] if length == 8 else [(0, 40)]
        out = torch.cat([sequences.step(torch.float32, layer, [s], *way)[0] for s in steps])
        assert out.isnan().any(2).any(1).tolist() == [t == 1 or t >= 5 for t in range(length)]
