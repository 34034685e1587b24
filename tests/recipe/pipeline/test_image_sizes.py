"""Sizes of generated images: all resolutions up to the limits of crops and tokens."""

from collections import Counter
from random import Random

import pytest

from polyphi.processing import image
from polyphi_recipe import stages
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.stages.sizes import FULL, LAB, NANO


def crops(size: tuple[int, int], limit: int) -> int:
    plan = image.plan(*size, max_crops=limit)
    return plan.crop_rows * plan.crop_cols


@pytest.mark.parametrize("limit", [16, 36])
def test_images_have_all_numbers_of_crops_up_to_the_limit(limit: int) -> None:
    sizes, rng = ImageSizes(448, limit, 64_512), Random(0)
    counts = Counter(crops(sizes.draw(rng), limit) for _ in range(2000))
    assert max(counts) == limit and counts[limit] > 20
    shares = [
        sum(counts[n] for n in crops_of) / 2000
        for crops_of in (range(1, 2), range(2, 5), range(5, 10), range(10, limit + 1))
    ]
    assert min(shares) > 0.1 and max(shares) < 0.5


@pytest.mark.parametrize("images", [1, 2, 16, 118])
def test_all_images_of_a_row_fit_its_tokens(images: int) -> None:
    sizes, rng = ImageSizes(448, 36, 64_512), Random(1)
    for _ in range(50):
        assert images * sizes.count_tokens(*sizes.draw(rng, images)) <= 64_512
    assert sizes.most == 118


def test_too_many_images_are_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"400 images.* at most 118"):
        ImageSizes(448, 36, 64_512).draw(Random(0), 400)


def test_the_limits_are_those_of_the_stages_that_read_a_corpus() -> None:
    """16 crops where a pre-training stage reads a corpus, else 36 (report 2.2.1); 64k tokens in vision 4 (2.2.2)."""
    limits = {
        name: stages.image_sizes(FULL, name)
        for name in ("captions", "interleaved", "ocr", "image_qa", "multi_image", "vision_speech")
    }
    assert {name: sizes and sizes.max_crops for name, sizes in limits.items()} == {
        **dict.fromkeys(("captions", "interleaved", "ocr"), 16),
        **dict.fromkeys(("image_qa", "multi_image", "vision_speech"), 36),
    }
    tokens = {name: sizes and sizes.tokens for name, sizes in limits.items()}
    assert tokens["interleaved"] == 8192 - stages.TEXT_TOKENS
    assert tokens["multi_image"] == 65_536 - stages.TEXT_TOKENS
    assert tokens["vision_speech"] == 16_384 - stages.TEXT_TOKENS
    assert stages.image_sizes(NANO, "image_qa") is None
    assert stages.image_sizes(FULL, "documents") is None


def test_documents_fill_the_context_of_text_2() -> None:
    assert stages.longest_document(FULL) == 131_072
    assert stages.longest_document(LAB) == 32_768
    assert stages.longest_document(NANO) is None
