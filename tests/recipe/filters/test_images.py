"""Image filters drop invalid documents with the reason, and leave the others unchanged."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datatrove.pipeline.base import PipelineStep
from fixtures.variants import few
from PIL import Image

from polyphi.data.shards import Sample, Shards
from polyphi.types.messages import Message
from polyphi.types.parts import Image as Picture
from polyphi.types.parts import Text
from polyphi_recipe.filters.images import (
    CAP,
    ClipScoreFilter,
    DownscaleImages,
    ImageSizeFilter,
    NsfwFilter,
    captions,
    shrunk,
)
from polyphi_recipe.pipeline import pipeline
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.pipeline.documents import sample as back
from polyphi_recipe.pipeline.pipeline import Machines


def picture(width: int, height: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(out, form)
    return out.getvalue()


def row(*images: bytes, id: str = "one", caption: str = "A cat.") -> Sample:
    prompt = Message.user(*(Picture(data) for data in images), "What is this?")
    return Sample(id, (prompt, Message.assistant(caption)), "test", "MIT")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([(200, 100)], None),
        ([(28, 140)], None),
        ([(27, 100)], "too small"),
        ([(200, 100), (27, 100)], "too small"),
        ([(501, 300)], "too large"),
        ([(28, 141)], "too narrow"),
        ([], None),
    ],
)
def test_sizes(sizes: list[tuple[int, int]], reason: str | None) -> None:
    doc = document(row(*(picture(*size) for size in sizes)))
    assert ImageSizeFilter(most=500).filter(doc) == (True if reason is None else (False, reason))
    assert [step["found"] for step in doc.metadata["lineage"]] == (
        [[list(size) for size in sizes]] if sizes else []
    )


@pytest.mark.parametrize(
    "data", [picture(90, 90)[:300], picture(90, 90, "JPEG")[:300], b"", b"GIF"]
)
def test_broken_pictures_are_dropped_with_the_error(data: bytes) -> None:
    doc = document(row(picture(90, 90), data))
    assert ImageSizeFilter().filter(doc) == (False, "broken")
    assert "expected" in doc.metadata["lineage"][0]["broken"]


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


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image).mean() / 255)


def test_a_classifier_drops_what_it_scores_too_high_and_its_scores_stay() -> None:
    dark, bright = (Image.new("RGB", (40, 40), (v, v, v)) for v in (51, 204))
    sheets = []
    for sheet in (dark, bright):
        out = io.BytesIO()
        sheet.save(out, "PNG")
        sheets.append(out.getvalue())
    step = NsfwFilter(brightness, classifier="brightness", most=0.5)
    good, bad, none = (document(row(*images)) for images in (sheets[:1], sheets, []))
    assert step.filter(good) is True and step.filter(none) is True
    assert step.filter(bad) == (False, "unsafe")
    expected = {"step": "safe", "model": "brightness", "scores": [0.2, 0.8], "most": 0.5}
    assert bad.metadata["lineage"] == [expected] and none.metadata["lineage"] == []


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


def test_a_caption_of_something_else_is_dropped() -> None:
    def similar(image: Image.Image, caption: str) -> float:
        return 0.9 if f"{image.width} pixels" in caption else 0.1

    step = ClipScoreFilter(similar, model="widths", least=0.25)
    right, wrong = (document(row(picture(30, 30), caption=f"It has {n} pixels.")) for n in (30, 40))
    assert step.filter(right) is True
    assert step.filter(wrong) == (False, "caption doesn't match")
    assert wrong.metadata["lineage"][0]["scores"] == [0.1]
    without_caption = document(row(picture(30, 30), picture(30, 30)))
    assert (
        step.filter(without_caption) is True
        and without_caption.metadata["lineage"][0]["scores"] == []
    )


def test_a_score_that_is_no_number_lets_nothing_through() -> None:
    doc = document(row(picture(30, 30), picture(30, 30)))
    scores = iter([0.1, float("nan")])
    assert NsfwFilter(lambda _: next(scores), classifier="broken").filter(doc) == (False, "unsafe")
    captioned = document(row(picture(30, 30)))
    broken = ClipScoreFilter(lambda *_: float("nan"), model="broken", least=0.0)
    assert broken.filter(captioned) == (False, "caption doesn't match")


def test_dropped_samples_of_a_pipeline_are_stored_with_their_reasons(tmp_path: Path) -> None:
    def rows() -> Iterator[Sample]:
        yield row(picture(2688, 1344), id="large")
        yield row(picture(20, 90), id="small")
        yield row(picture(90, 90)[:200], id="broken")
        yield row(picture(90, 90), id="unsafe", caption="A bus.")
        yield row(id="text")

    steps: list[PipelineStep] = [
        ImageSizeFilter(),
        DownscaleImages(),
        NsfwFilter(lambda image: float(image.width == 90), classifier="ninety"),
    ]
    pipeline.run(tmp_path / "train", [rows], steps, Machines(), pipeline="p" * 16)
    samples = {s.id: s for s in Shards(tmp_path / "train")}
    assert list(samples) == ["large", "text"]
    assert [step["step"] for step in samples["large"].meta["lineage"]] == [
        "sizes",
        "shrink",
        "safe",
    ]
    dropped = [
        json.loads(line)
        for path in sorted((tmp_path / ".made").rglob("dropped/*/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert {a["id"]: a["reason"] for a in dropped} == {
        "small": "too small", "broken": "broken", "unsafe": "unsafe"
    }  # fmt: skip
