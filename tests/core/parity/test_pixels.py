"""Pixels equal those of the published recipe, written with torchvision: Pillow's resize, white padding, normalization.

Pixels agree to the last bits of float32 (1e-6) and the global view to 1e-5, being the same arithmetic. The processor in
transformers 5 resizes tensors instead, which misses Pillow by up to one grey level (1/127.5) here and there; on CPUs
without AVX2 in a fifth of the values, at 1.5e-3 in the mean, and in fewer on others.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.images import cut

SIZES = [
    (448, 448),
    (449, 448),
    (100, 100),
    (32, 400),
    (1000, 30),
    (900, 500),
    (1, 1),
    (333, 777),
    pytest.param(1800, 2100, marks=pytest.mark.long),
]


def photo(width: int, height: int) -> Image.Image:
    """Noise over a gradient: edges and smooth parts both."""
    noise = np.random.default_rng(0).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((noise + slope).astype(np.uint8))


def published(
    picture: Image.Image, cols: int, rows: int, crop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normalized padded picture, its global view) by torchvision, given the grid."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    width, height = picture.size
    across, down = crop * cols / width, crop * rows / height
    size = (
        (crop * cols, int(height * across)) if across < down else (int(width * down), crop * rows)
    )
    scaled = functional.resize(picture, [size[1], size[0]])
    padded = functional.pad(
        scaled, [0, 0, crop * cols - size[0], crop * rows - size[1]], fill=[255, 255, 255]
    )
    whole = functional.normalize(functional.to_tensor(padded), [0.5] * 3, [0.5] * 3)
    view = torch.nn.functional.interpolate(
        whole[None].float(), size=(crop, crop), mode="bicubic", align_corners=False
    )
    return whole, view[0]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("crop", [448, 112])
def test_pixels_are_those_of_the_published_recipe(width: int, height: int, crop: int) -> None:
    if (crop, width, height) == (112, 1000, 30):
        width = 600  # else 8 columns of crops and nothing new
    picture = photo(width, height)
    crops, _, layout = cut(picture, crop_size=crop)
    whole, view = published(picture, layout.crop_cols, layout.crop_rows, crop)
    torch.testing.assert_close(crops[0], view, atol=1e-5, rtol=0)
    for n, pixels in enumerate(crops[1:]):
        top, left = crop * (n // layout.crop_cols), crop * (n % layout.crop_cols)
        torch.testing.assert_close(
            pixels, whole[:, top : top + crop, left : left + crop], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize(("width", "height"), [(448, 448), (100, 100), (900, 500), (224, 112)])
def test_transformers_is_within_a_grey_level(width: int, height: int) -> None:
    transformers = pytest.importorskip("transformers")
    picture = photo(width, height)
    theirs = transformers.models.phi4_multimodal.Phi4MultimodalImageProcessor()(
        picture, return_tensors="pt"
    )
    crops, _, _ = cut(picture)
    difference = (theirs["image_pixel_values"][0] - crops).abs()
    assert difference[1:].max() <= 1 / 127.5 + 1e-6 and difference.mean() < 3e-3
