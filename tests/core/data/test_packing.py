"""Packing a step: every sample once, limits kept, packs full."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyphi.data.packing import Capacity, RowSize, pack_step
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput, ImageLayout

SIZES = st.lists(
    st.builds(
        RowSize,
        st.integers(1, 9),
        st.fixed_dictionaries({"image": st.integers(0, 4), "audio": st.integers(0, 30)}),
    ),
    min_size=1,
    max_size=14,
)
CAPACITIES = st.builds(
    Capacity,
    st.integers(5, 20),
    st.fixed_dictionaries({}, optional={"image": st.integers(1, 6), "audio": st.integers(10, 60)}),
)


def sample(*lengths: int) -> list[Batch]:
    return [row([length] * length, supervise=[True] * length) for length in lengths]


def heavy(size: RowSize, name: int) -> list[Batch]:
    """Return a sample of a size whose token ids are all `name`."""
    crops, frames = size.inputs.get("image", 0), size.inputs.get("audio", 0)
    images = ImageInput(
        layouts=(ImageLayout(0, 0, 0, 0),) * crops,
        crops=torch.zeros(crops, 3, 2, 2),
        masks=torch.ones(crops, 1, 1, dtype=torch.bool),
    )
    clip = AudioLayout(frames, "speech")
    audio = AudioInput(layouts=(clip,), mels=torch.zeros(frames, 80))
    return [row([name] * size.tokens, images, audio, supervise=[True] * size.tokens)]


def within(size: RowSize, capacity: Capacity) -> bool:
    limits = capacity.inputs.items()
    return size.tokens <= capacity.tokens and all(size.inputs[n] <= limit for n, limit in limits)


def added(sizes: list[RowSize]) -> RowSize:
    inputs = {name: sum(s.inputs[name] for s in sizes) for name in ("image", "audio")}
    return RowSize(sum(s.tokens for s in sizes), inputs)


def test_the_largest_first_each_where_it_fits_best() -> None:
    samples = [sample(3, 3), sample(4), sample(20), sample(2), sample(5, 2)]
    packs = pack_step(samples, Capacity(10))
    assert [p.batch.cu_seqlens for p in packs] == [(0, 3, 6, 10), (0, 20), (0, 2, 7, 9)]
    assert [p.empty for p in packs] == pytest.approx([0.0, 0.0, 0.1])


@given(SIZES, CAPACITIES)
def test_packs_keep_bounds_and_no_two_would_fit_into_one(
    sizes: list[RowSize], capacity: Capacity
) -> None:
    groups = capacity.groups(sizes)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    pack_sizes = [added([sizes[i] for i in group]) for group in groups]
    for size, group in zip(pack_sizes, groups, strict=True):
        assert within(size, capacity) or len(group) == 1
        assert 0 <= capacity.empty(size) < 1
    for i, one in enumerate(pack_sizes):
        assert not any(within(added([one, other]), capacity) for other in pack_sizes[i + 1 :])
    assert groups == capacity.groups(list(sizes)), "and the same every time"


@given(SIZES, CAPACITIES, st.integers(1, 4))
def test_processes_share_a_step(sizes: list[RowSize], capacity: Capacity, world: int) -> None:
    """Each process has the sizes of all samples and the rows of its own."""
    samples = [heavy(size, i) for i, size in enumerate(sizes)]
    parts = [sizes[rank::world] for rank in range(world)]
    smallest = min(samples, key=lambda rows: len(rows[0]))
    packs_by_rank = [
        pack_step(samples[rank::world], capacity, parts[:rank] + parts[rank + 1 :], smallest)
        for rank in range(world)
    ]
    assert len({len(packs) for packs in packs_by_rank}) == 1, "every process has as many packs"
    counted = sorted(
        i for packs in packs_by_rank for p in packs if p.share for i in p.batch.ids.tolist()
    )
    assert counted == sorted(i for i, size in enumerate(sizes) for _ in range(size.tokens))
    assert {p.share for packs in packs_by_rank for p in packs} <= {0.0, 1.0}
    for packs in packs_by_rank:
        for p in packs:
            assert within(RowSize.of([p.batch]), capacity) or p.batch.sequences == 1


def test_the_rows_of_a_sample_stay_together() -> None:
    pairs = [sample(i, i + 1) for i in range(1, 9)]
    for pack in pack_step(pairs, Capacity(20)):
        lengths = [
            b - a for a, b in zip(pack.batch.cu_seqlens, pack.batch.cu_seqlens[1:], strict=False)
        ]
        assert all(b == a + 1 for a, b in zip(lengths[::2], lengths[1::2], strict=True))


def test_media_bound_packs_too_and_blank_patches_are_counted() -> None:
    samples = [heavy(RowSize(2, {"image": 3}), i) for i in range(4)]
    samples += [heavy(RowSize(2, {"audio": 40}), 9)]
    assert len(pack_step(samples, Capacity(100))) == 1
    assert len(pack_step(samples, Capacity(100, {"image": 6}))) == 2
    assert len(pack_step(samples, Capacity(100, {"image": 3, "audio": 40}))) == 4
    (pack,) = pack_step(samples, Capacity(100))
    assert pack.padding_share == 0
    half = torch.tensor([True, False]).expand(12, 2, 2)
    from dataclasses import replace

    images = replace(pack.batch.inputs["image"], masks=half)
    assert replace(pack, batch=pack.batch.with_inputs(images)).padding_share == 0.5
    with pytest.raises(ValueError, match="found 0"):
        Capacity(10, {"image": 0})
