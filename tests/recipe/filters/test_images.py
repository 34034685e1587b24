"""Large images are scaled down; what counts as the caption of an image."""

import io

import pytest
from PIL import Image

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Image as Picture
from polyphi.types.parts import Text
from polyphi_recipe.filters.images import (
    CAP,
    DownscaleImages,
    ImageSizeFilter,
    captions,
    shrunk,
)
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.pipeline.documents import sample as back
from tests.fixtures.variants import few
from tests.recipe.filters.test_filters import picture


def row(*images: bytes, id: str = "one", caption: str = "A cat.") -> Sample:
    prompt = Message.user(*(Picture(data) for data in images), "What is this?")
    return Sample(id, (prompt, Message.assistant(caption)), "test", "MIT")


def test_impossible_bounds_are_refused() -> None:
    for bounds in ({"least": 0}, {"least": 50, "most": 40}, {"aspect": 0.5}):
        with pytest.raises(ValueError, match="least <= most"):
            ImageSizeFilter(**bounds)


@pytest.mark.parametrize(
    ("form", "kind"), few([("JPEG", "jpeg"), ("PNG", "png"), ("BMP", "png")], 1)
)
def test_large_pictures_shrink_and_small_ones_stay_byte_for_byte(form: str, kind: str) -> None:
    large, small = picture(3000, 1500, form), picture(1344, 700, form)
    (doc,) = DownscaleImages().run(iter([document(row(large, small))]))
    images = [p.source for p in back(doc).messages[0].parts if isinstance(p, Picture)]
    with Image.open(io.BytesIO(images[0])) as opened:
        assert opened.size == (CAP, CAP // 2) and opened.format == kind.upper()
    assert images[1] == small
    assert doc.media[0].metadata["mime"] == f"image/{kind}" and doc.media[0].id != doc.media[1].id
    (step,) = doc.metadata["lineage"]
    assert (step["found"], step["now"]) == ([[3000, 1500]], [[1344, 672]])


def test_a_sliver_keeps_a_pixel() -> None:
    assert shrunk(Image.new("RGB", (9000, 2))).size == (1344, 1)


def test_captions_are_the_answer_or_the_text_that_follows() -> None:
    a, b = picture(30, 30), picture(40, 40)
    assert captions(row(a, caption="A cat.")) == [(a, "A cat.")]
    assert captions(row(a, b)) == [] == captions(row())
    parts = (
        Text("First"),
        Picture(a),
        Text("a cat"),
        Text("sleeps."),
        Picture(b),
        Picture(a),
        Text("Two."),
    )
    page = Sample("page", (Message("document", parts),), "test", "MIT")
    assert captions(page) == [(a, "a cat sleeps."), (a, "Two.")]
