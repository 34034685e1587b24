"""The plan of crops is valid for every size of picture and crop; pixels are where the plan puts them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from polyphi.processing import image
from polyphi.processing.image import count_tokens, grid, plan
from polyphi.types.batch import pack, row
from polyphi.types.inputs.image import ImageInput, normalized
from tests.fixtures.images import cut


def test_the_docstring() -> None:
    crops, view, masks, layout = image.cut(Image.new("RGB", (900, 500)), plan(900, 500))
    assert (crops.shape, view.shape, masks.shape) == (
        (6, 3, 448, 448),
        (1, 3, 448, 448),
        (7, 32, 32),
    )
    assert (layout.crop_rows, layout.crop_cols, layout.tokens(16)) == (2, 3, 1596)


def test_a_small_picture_is_blown_up_to_one_crop() -> None:
    crops, masks, layout = cut(Image.new("RGB", (1, 1), (255, 0, 0)), crop_size=112)
    assert layout.tokens(4) == 41 and masks.all()
    assert (
        crops.shape == (2, 3, 112, 112) and (crops[:, 0] == 1).all() and (crops[:, 1:] == -1).all()
    )


def test_pixels_and_masks_follow_the_plan() -> None:
    """Crops of 56 x 56 pixels, 4 x 4 patches; a picture of 100 x 40 fills 112 x 44 pixels: 8 x 4 patches, some cut."""
    p = plan(100, 40, crop_size=56)
    assert (p.crop_cols, p.crop_rows, p.width, p.height, p.patch_cols, p.patch_rows) == (
        2,
        1,
        112,
        44,
        8,
        4,
    )
    assert (p.layout.rows, p.layout.cols) == (2, 4)
    p = plan(100, 30, crop_size=56)
    assert (p.height, p.patch_rows, p.layout.rows) == (
        33,
        3,
        2,
    )  # 23 pixels of padding: one patch row is all padding
    crops, masks, _ = cut(Image.new("RGB", (100, 30), (255, 0, 0)), crop_size=56)
    assert masks[0].all() and masks[1:, :3].all() and not masks[1:, 3:].any()
    assert (crops[1:, 1, :33] == -1).all() and (
        crops[1:, :, 33:] == 1
    ).all()  # no green above, white below
    assert (
        crops[0, 1, :30].max() < -0.9 and crops[0, 1, 36:].min() > 0.9
    )  # the global view shows the padding too


def test_crops_go_row_by_row() -> None:
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(56, 0).repeat(56, 1) * 40
    crops, _, layout = cut(Image.fromarray(shades).convert("RGB"), crop_size=56)
    assert (layout.crop_rows, layout.crop_cols) == (2, 3)
    means = (crops[1:].mean((1, 2, 3)) * 0.5 + 0.5) * 255
    torch.testing.assert_close(means, torch.arange(6) * 40.0, atol=0.01, rtol=0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([28, 56, 112, 448]),
    st.integers(1, 36),
)
def test_every_plan_is_sound(width: int, height: int, crop_size: int, max_crops: int) -> None:
    try:
        p = plan(width, height, crop_size=crop_size, max_crops=max_crops)
    except ValueError as error:
        assert "too long and thin" in str(error)
        assume(False)
    side = crop_size // 14
    assert 1 <= p.crop_rows * p.crop_cols <= max_crops
    assert p.width <= p.crop_cols * crop_size and p.height <= p.crop_rows * crop_size
    assert p.width == p.crop_cols * crop_size or p.height == p.crop_rows * crop_size
    # No crop is all padding.
    assert (p.crop_rows - 1) * side < p.patch_rows <= p.crop_rows * side
    assert (p.crop_cols - 1) * side < p.patch_cols <= p.crop_cols * side
    cells = side // 2
    assert count_tokens(width, height, crop_size=crop_size, max_crops=max_crops) == p.layout.tokens(
        cells
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([28, 56, 112]), st.integers(1, 12))
def test_the_pixels_follow_the_plan(
    width: int, height: int, crop_size: int, max_crops: int
) -> None:
    try:
        p = plan(width, height, crop_size=crop_size, max_crops=max_crops)
    except ValueError:
        assume(False)
    crops, masks, layout = cut(
        Image.new("RGB", (width, height)), crop_size=crop_size, max_crops=max_crops
    )
    side = crop_size // 14
    assert layout == p.layout and len(crops) == len(masks) == layout.crops
    assert (
        masks[0].all() and masks[1:].sum() == p.patch_rows * p.patch_cols and masks[1:, 0, 0].all()
    )
    whole = (
        masks[1:]
        .reshape(p.crop_rows, p.crop_cols, side, side)
        .transpose(1, 2)
        .reshape(p.crop_rows * side, -1)
    )
    assert whole[:, 0].sum() == p.patch_rows and whole[0].sum() == p.patch_cols
    assert crops.min() >= -1.5 and torch.isfinite(crops).all()


def test_eight_bits_give_the_published_floats_to_the_bit() -> None:
    """(x / 255 - 0.5) / 0.5 in float32, for every value of a pixel and whatever lies beside it in memory."""
    values = np.arange(256, dtype=np.uint8)
    floats = (values.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    pixels = torch.from_numpy(values)
    assert normalized(pixels).numpy().tobytes() == floats.tobytes()
    for size in range(1, 20):
        assert normalized(pixels[:size]).numpy().tobytes() == floats[:size].tobytes()
    out = torch.zeros(256, 2)
    assert normalized(pixels, out[:, 1]).numpy().tobytes() == floats.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 300), st.integers(60, 300), st.sampled_from([1, 4, 12]), st.integers(0, 9))
def test_the_floats_are_those_of_the_whole_picture_cut(
    width: int, height: int, max_crops: int, seed: int
) -> None:
    """Normalized before it is cut, in the layout of a decoded picture: the crops and the view, to the bit."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels)
    crops, _, layout = cut(picture, crop_size=56, max_crops=max_crops)
    p = plan(width, height, crop_size=56, max_crops=max_crops)
    canvas = np.full((p.crop_rows * 56, p.crop_cols * 56, 3), 255, np.uint8)
    canvas[: p.height, : p.width] = picture.resize((p.width, p.height), Image.Resampling.BILINEAR)
    whole = torch.from_numpy(canvas).permute(2, 0, 1).float().div_(255).sub_(0.5).div_(0.5)
    view = torch.nn.functional.interpolate(
        whole[None], size=(56, 56), mode="bicubic", align_corners=False
    )
    assert torch.equal(crops[:1], view)
    for number, crop in enumerate(crops[1:]):
        top, left = 56 * (number // layout.crop_cols), 56 * (number % layout.crop_cols)
        assert torch.equal(crop, whole[:, top : top + 56, left : left + 56])


def test_packed_pictures_are_split_again() -> None:
    def image_row(width: int, height: int):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        sizes = plan(width, height, crop_size=56, max_crops=6)
        crops, view, masks, layout = image.cut(Image.fromarray(pixels), sizes)
        return row([0], ImageInput(layouts=(layout,), crops=crops, views=view, masks=masks))

    rows = [image_row(*size) for size in ((56, 56), (100, 40), (20, 20), (150, 100))]
    packed = pack(rows).inputs["image"]
    assert packed.crops.dtype == torch.uint8 and len(packed.crops) == 1 + 2 + 1 + 6
    assert len(packed.views) == 2 and packed.size == len(packed.masks) == 14
    images = packed.ready()
    alone = [r.inputs["image"].ready() for r in rows]
    assert images.crops.equal(torch.cat([one.crops for one in alone]))
    assert images.views is None and images.ready() is images
    floats = replace(packed, crops=images.crops, views=None)
    for batch in (packed, floats):
        parts = list(batch.split())
        for one, part in zip(alone, parts, strict=True):
            assert part.layouts == one.layouts and part.masks.equal(one.masks)
            assert part.ready().crops.equal(one.crops)
        assert ImageInput.join(parts).ready().crops.equal(images.crops)
    sizes = [sum(t.nbytes for t in one.tensors.values()) for one in (packed, floats)]
    assert 3 * sizes[0] < sizes[1]
    with pytest.raises(AssertionError, match="mixes"):
        ImageInput.join([packed, floats])


def test_a_grid_by_aspect_ratio() -> None:
    assert grid(4000, 3000) == (4, 3) and grid(3000, 3000) == (6, 6) and grid(20000, 600) == (33, 1)
    # Of 1 x 1, 2 x 2, ... the larger only if the picture has more than half of its pixels.
    assert grid(500, 500, 100, 16) == (4, 4) and grid(500, 500, 400, 3) == (1, 1)


def test_refusals() -> None:
    with pytest.raises(
        ValueError,
        match=r"20000 x 10 .* 36 x 1 .* 16128 x 8",
    ):
        plan(20000, 10)
    with pytest.raises(ValueError, match=r"28 .*100"):
        plan(10, 10, crop_size=100)
    with pytest.raises(ValueError, match="one crop"):
        plan(10, 10, max_crops=0)
    with pytest.raises(ValueError, match="0 x 5"):
        plan(0, 5)
