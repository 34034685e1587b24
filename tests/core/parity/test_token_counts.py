"""Crops, masks and tokens of the 30 sizes that Microsoft's image processor was run on (dynamic_hd 36), exactly."""

import numpy as np
import pytest
from PIL import Image

from polyphi.processing.image import count_tokens, plan
from tests.fixtures.images import cut

# W x H, crop columns, crop rows, valid patch rows, valid patch columns, tokens
SIZES = [
    (448, 448, 1, 1, 32, 32, 545),
    (449, 448, 2, 1, 32, 33, 561),
    (449, 449, 2, 2, 64, 64, 1329),
    (896, 896, 2, 2, 64, 64, 1329),
    (900, 500, 3, 2, 54, 96, 1596),
    (1344, 896, 3, 2, 64, 96, 1841),
    (640, 480, 2, 2, 48, 64, 1065),
    (1280, 720, 3, 2, 54, 96, 1596),
    (1920, 1080, 5, 3, 90, 160, 3918),
    (3840, 2160, 7, 4, 126, 224, 7392),
    (4000, 3000, 4, 3, 96, 128, 3393),
    (300, 700, 1, 2, 64, 28, 753),
    (100, 100, 1, 1, 32, 32, 545),
    (32, 400, 1, 1, 32, 3, 321),
    (1000, 30, 3, 1, 3, 96, 371),
    (20000, 600, 33, 1, 32, 1056, 8737),
    (2688, 2688, 6, 6, 192, 192, 9585),
    (3000, 3000, 6, 6, 192, 192, 9585),
    (1713, 895, 4, 2, 64, 123, 2289),
    (823, 1791, 2, 4, 128, 59, 2257),
    (1093, 337, 3, 1, 30, 96, 1008),
    (1838, 1888, 5, 5, 160, 156, 6593),
    (2422, 765, 6, 2, 61, 192, 3280),
    (2195, 2282, 5, 6, 167, 160, 7077),
    (1761, 597, 4, 2, 44, 128, 1703),
    (2180, 2000, 5, 5, 147, 160, 6267),
    (2223, 1036, 5, 3, 75, 160, 3351),
    (815, 2106, 2, 5, 160, 62, 2833),
    (1931, 2556, 5, 6, 192, 145, 7377),
    (159, 2068, 1, 5, 160, 13, 913),
]


@pytest.mark.parametrize("row", SIZES, ids=lambda row: f"{row[0]}x{row[1]}")
def test_the_published_table(row: tuple[int, ...]) -> None:
    width, height, cols, rows, patch_rows, patch_cols, tokens = row
    p = plan(width, height)
    assert (p.crop_cols, p.crop_rows, p.patch_rows, p.patch_cols) == (
        cols,
        rows,
        patch_rows,
        patch_cols,
    )
    assert count_tokens(width, height) == tokens == p.layout.tokens(16)
    assert tokens == 273 + p.layout.rows * (p.layout.cols + 1)


@pytest.mark.parametrize(
    ("width", "height"), [(449, 448), (900, 500), (32, 400), (1000, 30), (300, 700), (1093, 337)]
)
def test_transformers_counts_and_masks_the_same(width: int, height: int) -> None:
    transformers = pytest.importorskip("transformers")
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    )
    theirs = transformers.models.phi4_multimodal.Phi4MultimodalImageProcessor()(
        picture, return_tensors="pt"
    )
    _, masks, layout = cut(picture)
    assert layout.tokens(16) == theirs["num_img_tokens"][0]
    assert theirs["image_attention_mask"][0].bool().equal(masks)
    height, width = theirs["image_sizes"][0].tolist()
    assert (layout.crop_rows, layout.crop_cols) == (height // 448, width // 448)
