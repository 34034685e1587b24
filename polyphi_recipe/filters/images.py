"""Image filters: broken images, sizes, unsafe images, captions that don't match; and the cap of 1344 x 1344 (report
3.2).

    image                     step             found                         result
    cut JPEG                  ImageSizeFilter            "broken"                      dropped
    20 x 900                  ImageSizeFilter            20 x 900                      dropped: "too small"
    4000 x 3000               DownscaleImages           1344 x 1008                   scaled down
    (a classifier's 0.93)     NsfwFilter             0.93 of at most 0.5           dropped: "unsafe"
    a cat, "A red bus."       ClipScoreFilter         0.11 of at least 0.25         dropped: "caption doesn't match"

A sample with several images is dropped if one of them is. Samples without images pass. Classifiers and similarities are
callables of the user; their scores are noted in the lineage.
"""

import io
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from datatrove.data import Document, DocumentsPipeline, Media
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from PIL import Image

from polyphi.data.shards import Sample
from polyphi.media.media import decode_image
from polyphi.types.parts import Image as Picture
from polyphi.types.parts import Text
from polyphi_recipe.pipeline.documents import note, sample

CAP = 1344
"""Pixels of a side: "the maximum image resolution is capped at 1344x1344" (report 3.2)."""

FilterResult = bool | tuple[bool, str]


def images_of(doc: Document) -> list[Media]:
    """Return the images of a document, in order."""
    return [m for m in doc.media if m.metadata["kind"] == "image"]


class ImageSizeFilter(BaseFilter):
    """Keeps documents whose images can be decoded, have sides of `least` to `most` pixels, and whose longer side is
    at most `aspect` times the shorter one. Notes the sizes, [width, height]. [ours] all three numbers.

    Reasons of a drop: "broken", "too small", "too large", "too narrow".
    """

    name, type = "ImageSizeFilter", "FILTER"

    def __init__(self, least: int = 28, most: int = 10_000, aspect: float = 5.0) -> None:
        super().__init__()
        if not (1 <= least <= most and aspect >= 1):
            raise ValueError(
                f"expected 1 <= least <= most and an aspect of 1 or more, found {least}, {most}, {aspect:g}"
            )
        self._least, self._most, self._aspect = least, most, aspect

    def filter(self, doc: Document) -> FilterResult:
        """Return True, or False with the reason."""
        sizes = []
        for medium in images_of(doc):
            try:
                sizes.append(decode_image(medium.media_bytes).size)
            except ValueError as error:
                note(doc, "sizes", broken=str(error))
                return False, "broken"
        if sizes:
            note(doc, "sizes", found=[list(size) for size in sizes])
        for size in sizes:
            if min(size) < self._least:
                return False, "too small"
            if max(size) > self._most:
                return False, "too large"
            if max(size) > self._aspect * min(size):
                return False, "too narrow"
        return True


class DownscaleImages(PipelineStep):
    """Scales images down to `cap` pixels a side, keeping their aspect; smaller ones stay unchanged, byte for byte.
    JPEGs stay JPEGs (quality 92), others become PNGs. Notes [width, height] before and after.

    Raises ValueError for a broken image: put `ImageSizeFilter` before it.
    """

    name, type = "DownscaleImages", "FORMATTER"

    def __init__(self, cap: int = CAP) -> None:
        super().__init__()
        self._cap = cap

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the same documents, in order."""
        for doc in data:
            self.stat_update("total")
            for medium in images_of(doc):
                image = decode_image(medium.media_bytes)
                if max(image.size) > self._cap:
                    smaller = shrunk(image, self._cap)
                    note(doc, "shrink", found=[list(image.size)], now=[list(smaller.size)])
                    self.stat_update("shrunk")
                    form = "JPEG" if medium.metadata["mime"] == "image/jpeg" else "PNG"
                    _replace(medium, encoded(smaller, form), f"image/{form.lower()}")
            self.stat_update("forwarded")
            yield doc


def shrunk(image: Image.Image, cap: int = CAP) -> Image.Image:
    """Return the image scaled so that no side is longer than `cap`, with its aspect; small images unchanged."""
    if max(image.size) <= cap:
        return image
    scale = cap / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def encoded(image: Image.Image, form: str = "JPEG", quality: int = 92) -> bytes:
    """Return the bytes of an image as "JPEG" of a quality, or "PNG"."""
    out = io.BytesIO()
    image.save(out, form, **({"quality": quality} if form == "JPEG" else {}))
    return out.getvalue()


def _replace(medium: Media, data: bytes, mime: str) -> None:
    medium.media_bytes, medium.id = data, sha256(data).hexdigest()
    medium.metadata = {**medium.metadata, "mime": mime}


class NsfwFilter(BaseFilter):
    """Drops documents with an image that a classifier scores above `most`: `score(image)` is the probability, in
    [0, 1], that the image isn't safe for work. Notes every score, and which `classifier` gave it.

    >>> NsfwFilter(score, classifier="mine, of May", most=0.2)
    """

    name, type = "NsfwFilter", "FILTER"

    def __init__(
        self, score: Callable[[Image.Image], float], *, classifier: str, most: float = 0.5
    ) -> None:
        super().__init__()
        self._score, self._classifier, self._most = score, classifier, most

    def filter(self, doc: Document) -> FilterResult:
        """Return True, or False with the reason."""
        scores = [float(self._score(decode_image(m.media_bytes))) for m in images_of(doc)]
        if not scores:
            return True
        _note(doc, "safe", self._classifier, scores, most=self._most)
        return all(score <= self._most for score in scores) or (False, "unsafe")


class ClipScoreFilter(BaseFilter):
    """Keeps documents in which every image fits its caption (`captions`): `similarity(image, caption)`, such as the
    cosine of CLIP's embeddings, is at least `least`. For caption corpora: in corpora of questions the answer would be
    compared with the image. Notes every score, and which `model` gave it. Documents whose images have no caption pass,
    without a score.
    """

    name, type = "ClipScoreFilter", "FILTER"

    def __init__(
        self, similarity: Callable[[Image.Image, str], float], *, model: str, least: float
    ) -> None:
        super().__init__()
        self._similarity, self._model, self._least = similarity, model, least

    def filter(self, doc: Document) -> FilterResult:
        """Return True, or False with the reason."""
        if not images_of(doc):
            return True
        pairs = captions(sample(doc))
        scores = [float(self._similarity(decode_image(data), caption)) for data, caption in pairs]
        _note(doc, "matching", self._model, scores, least=self._least)
        return all(score >= self._least for score in scores) or (False, "caption doesn't match")


def captions(one: Sample) -> list[tuple[bytes, str]]:
    """Return (image bytes, caption) pairs. In a document the caption is the text up to the next image; in a
    conversation about one image it is the answer. A conversation about several images has no captions."""
    if one.messages[0].role != "document":
        images = [p for m in one.messages for p in m.parts if isinstance(p, Picture)]
        return [(images[0].source, one.answer)] if len(images) == 1 and one.answer else []  # type: ignore[list-item]
    pairs: list[tuple[bytes, str]] = []
    for part in (p for m in one.messages for p in m.parts):
        if isinstance(part, Picture):
            pairs.append((part.source, ""))  # type: ignore[arg-type]
        elif isinstance(part, Text) and pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} {part.text}".strip())
    return [(data, caption) for data, caption in pairs if caption]


def _note(doc: Document, step: str, model: str, scores: Sequence[float], **limit: Any) -> None:
    rounded = [round(score, 3) for score in scores]
    note(doc, step, model=model, scores=rounded, **limit)
