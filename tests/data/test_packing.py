"""Dealing a step: nothing lost, nothing twice, bounds kept, packs full."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyphi.batch import Batch, Clip, ImageLayout, row
from polyphi.data.packing import Room, Size, deal, whole

SIZES = st.lists(
    st.builds(Size, st.integers(1, 9), st.integers(0, 4), st.integers(0, 30)),
    min_size=1,
    max_size=14,
)
ROOMS = st.builds(
    Room,
    st.integers(5, 20),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(10, 60),
)


def sample(*lengths: int) -> list[Batch]:
    return [row([length] * length, supervise=[True] * length) for length in lengths]


def heavy(size: Size, name: int) -> list[Batch]:
    """A sample of a size, all of whose tokens are its name."""
    media = {
        "crops": torch.zeros(size.crops, 3, 2, 2),
        "crop_masks": torch.ones(size.crops, 1, 1, dtype=torch.bool),
        "images": (ImageLayout(0, 0, 0, 0),) * size.crops,
        "mels": torch.zeros(size.frames, 80),
        "clips": (Clip(size.frames, "speech"),),
    }
    return [row([name] * size.tokens, supervise=[True] * size.tokens, **media)]


def within(size: Size, room: Room) -> bool:
    return (
        size.tokens <= room.tokens
        and (room.crops is None or size.crops <= room.crops)
        and (room.frames is None or size.frames <= room.frames)
    )


def added(sizes: list[Size]) -> Size:
    return Size(*(sum(getattr(s, key) for s in sizes) for key in ("tokens", "crops", "frames")))


def test_the_largest_first_each_where_it_fits_best() -> None:
    samples = [sample(3, 3), sample(4), sample(20), sample(2), sample(5, 2)]
    packs = deal(samples, Room(10))
    assert [p.batch.bounds for p in packs] == [(0, 3, 6, 10), (0, 20), (0, 2, 7, 9)]
    assert [p.empty for p in packs] == pytest.approx([0.0, 0.0, 0.1])


@given(SIZES, ROOMS)
def test_packs_keep_bounds_and_no_two_would_fit_into_one(sizes: list[Size], room: Room) -> None:
    groups = room.groups(sizes)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    held = [added([sizes[i] for i in group]) for group in groups]
    for size, group in zip(held, groups, strict=True):
        assert within(size, room) or len(group) == 1
        assert 0 <= room.empty(size) < 1
    for i, one in enumerate(held):
        assert not any(within(added([one, other]), room) for other in held[i + 1 :])
    assert groups == room.groups(list(sizes)), "and the same every time"


@given(SIZES, ROOMS, st.integers(1, 4))
def test_processes_share_a_step(sizes: list[Size], room: Room, world: int) -> None:
    """Each knows what the others' samples hold, and has the rows of its own."""
    samples = [heavy(size, i) for i, size in enumerate(sizes)]
    parts = [sizes[rank::world] for rank in range(world)]
    smallest = min(samples, key=lambda rows: len(rows[0]))
    dealt = [
        deal(samples[rank::world], room, parts[:rank] + parts[rank + 1 :], smallest)
        for rank in range(world)
    ]
    assert len({len(packs) for packs in dealt}) == 1, "every process has as many packs"
    counted = sorted(i for packs in dealt for p in packs if p.share for i in p.batch.ids.tolist())
    assert counted == sorted(i for i, size in enumerate(sizes) for _ in range(size.tokens))
    assert {p.share for packs in dealt for p in packs} <= {0.0, 1.0}
    for packs in dealt:
        for p in packs:
            assert within(Size.of([p.batch]), room) or p.batch.sequences == 1


def test_the_rows_of_a_sample_stay_together() -> None:
    pairs = [sample(i, i + 1) for i in range(1, 9)]
    for pack in deal(pairs, Room(20)):
        lengths = [b - a for a, b in zip(pack.batch.bounds, pack.batch.bounds[1:], strict=False)]
        assert all(b == a + 1 for a, b in zip(lengths[::2], lengths[1::2], strict=True))


def test_media_bound_packs_too_and_blank_patches_are_counted() -> None:
    samples = [heavy(Size(2, 3), i) for i in range(4)] + [heavy(Size(2, 0, 40), 9)]
    assert len(deal(samples, Room(100))) == 1
    assert len(deal(samples, Room(100, crops=6))) == 2
    assert len(deal(samples, Room(100, crops=3, frames=40))) == 4
    (pack,) = deal(samples, Room(100))
    assert pack.blank == 0
    half = torch.tensor([True, False]).expand(12, 2, 2)
    from dataclasses import replace

    assert replace(pack, batch=replace(pack.batch, crop_masks=half)).blank == 0.5
    with pytest.raises(ValueError, match="room for at least one of each kind, found 0"):
        Room(10, 0)


def test_samples_that_are_compared_stay_together() -> None:
    samples = [sample(n) for n in (4, 5, 6)]
    (one,) = whole(samples, processes=2)
    assert len(one.batch) == 15 and one.share == 0.5
