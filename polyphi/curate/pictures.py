"""Filters of pictures: broken ones, bad sizes, unsafe ones, captions that tell of something else; and the cap of
1344 x 1344 (report 3.2).

    picture                   step             found                         then
    cut JPEG                  Sizes            "broken"                      dropped
    20 x 900                  Sizes            20 x 900                      dropped: "too small"
    4000 x 3000               Shrink           1344 x 1008                   stays, smaller
    (a classifier's 0.93)     Safe             0.93 of at most 0.5           dropped: "unsafe"
    a cat, "A red bus."       Matching         0.11 of at least 0.25         dropped: "caption doesn't match"

A sample with several pictures goes if one of them does. Samples without pictures pass. Classifiers and similarities are
callables of yours; wherever one is asked, its scores stay in the lineage.
"""

import io
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from datatrove.data import Document, DocumentsPipeline, Media
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from PIL import Image

from polyphi.curate.documents import note, sample
from polyphi.data.shards import Sample
from polyphi.messages import Image as Picture
from polyphi.messages import Text
from polyphi.processing.media import decode_image

CAP = 1344
"""Pixels of a side: "the maximum image resolution is capped at 1344x1344" (report 3.2)."""

Dropped = bool | tuple[bool, str]


def pictures(doc: Document) -> list[Media]:
    """The pictures of a document, in order."""
    return [m for m in doc.media if m.metadata["kind"] == "image"]


class Sizes(BaseFilter):
    """Keeps documents whose pictures can be decoded, have sides of `least` to `most` pixels, and whose longer side is
    at most `aspect` times the shorter one. Notes the sizes, [width, height]. [ours] all three numbers.

    Reasons of a drop: "broken", "too small", "too large", "too narrow".
    """

    name, type = "Sizes", "FILTER"

    def __init__(self, least: int = 28, most: int = 10_000, aspect: float = 5.0) -> None:
        super().__init__()
        if not (1 <= least <= most and aspect >= 1):
            raise ValueError(
                f"expected 1 <= least <= most and an aspect of 1 or more, found {least}, {most}, {aspect:g}"
            )
        self._least, self._most, self._aspect = least, most, aspect

    def filter(self, doc: Document) -> Dropped:
        """Whether to keep a document; if not, why."""
        found = []
        for medium in pictures(doc):
            try:
                found.append(decode_image(medium.media_bytes).size)
            except ValueError as error:
                note(doc, "sizes", broken=str(error))
                return False, "broken"
        if found:
            note(doc, "sizes", found=[list(size) for size in found])
        for size in found:
            if min(size) < self._least:
                return False, "too small"
            if max(size) > self._most:
                return False, "too large"
            if max(size) > self._aspect * min(size):
                return False, "too narrow"
        return True


class Shrink(PipelineStep):
    """Brings pictures down to `cap` pixels a side, keeping their aspect; smaller ones stay as they are, byte for byte.
    JPEGs stay JPEGs (quality 92), others become PNGs. Notes [width, height] before and after.

    Raises ValueError where a picture is broken: `Sizes` goes before it.
    """

    name, type = "Shrink", "FORMATTER"

    def __init__(self, cap: int = CAP) -> None:
        super().__init__()
        self._cap = cap

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The same documents, in order."""
        for doc in data:
            self.stat_update("total")
            for medium in pictures(doc):
                picture = decode_image(medium.media_bytes)
                if max(picture.size) > self._cap:
                    smaller = shrunk(picture, self._cap)
                    note(doc, "shrink", found=[list(picture.size)], now=[list(smaller.size)])
                    self.stat_update("shrunk")
                    form = "JPEG" if medium.metadata["mime"] == "image/jpeg" else "PNG"
                    _replace(medium, encoded(smaller, form), f"image/{form.lower()}")
            self.stat_update("forwarded")
            yield doc


def shrunk(picture: Image.Image, cap: int = CAP) -> Image.Image:
    """The picture with no side longer than `cap`, in its own proportions; itself where it is small enough."""
    if max(picture.size) <= cap:
        return picture
    scale = cap / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def encoded(picture: Image.Image, form: str = "JPEG", quality: int = 92) -> bytes:
    """Bytes of a picture as "JPEG" of a quality, or "PNG"."""
    out = io.BytesIO()
    picture.save(out, form, **({"quality": quality} if form == "JPEG" else {}))
    return out.getvalue()


def _replace(medium: Media, data: bytes, mime: str) -> None:
    medium.media_bytes, medium.id = data, sha256(data).hexdigest()
    medium.metadata = {**medium.metadata, "mime": mime}


class Safe(BaseFilter):
    """Drops documents of which a picture is scored above `most` by a classifier: `score(picture)` is the probability
    that it isn't safe for work, in [0, 1]. Notes every score, and which `classifier` gave it.

    >>> Safe(score, classifier="mine, of May", most=0.2)
    """

    name, type = "Safe", "FILTER"

    def __init__(
        self, score: Callable[[Image.Image], float], *, classifier: str, most: float = 0.5
    ) -> None:
        super().__init__()
        self._score, self._classifier, self._most = score, classifier, most

    def filter(self, doc: Document) -> Dropped:
        """Whether to keep a document; if not, why."""
        scores = [float(self._score(decode_image(m.media_bytes))) for m in pictures(doc)]
        if not scores:
            return True
        _note(doc, "safe", self._classifier, scores, most=self._most)
        return all(score <= self._most for score in scores) or (False, "unsafe")


class Matching(BaseFilter):
    """Keeps documents in which every picture fits its caption (`captions`): `similarity(picture, caption)`, such as the
    cosine of CLIP's embeddings, is at least `least`. For corpora of captions: of questions the answer would be held
    against the picture. Notes every score, and which `model` gave it. Documents whose pictures have no caption pass,
    with no score.
    """

    name, type = "Matching", "FILTER"

    def __init__(
        self, similarity: Callable[[Image.Image, str], float], *, model: str, least: float
    ) -> None:
        super().__init__()
        self._similarity, self._model, self._least = similarity, model, least

    def filter(self, doc: Document) -> Dropped:
        """Whether to keep a document; if not, why."""
        if not pictures(doc):
            return True
        pairs = captions(sample(doc))
        scores = [float(self._similarity(decode_image(data), told)) for data, told in pairs]
        _note(doc, "matching", self._model, scores, least=self._least)
        return all(score >= self._least for score in scores) or (False, "caption doesn't match")


def captions(one: Sample) -> list[tuple[bytes, str]]:
    """(picture's bytes, what is said of it). In a document that is the text up to the next picture; in a conversation
    about one picture it is the answer. A conversation about several has no caption of each."""
    if one.messages[0].role != "document":
        shown = [p for m in one.messages for p in m.parts if isinstance(p, Picture)]
        return [(shown[0].source, one.answer)] if len(shown) == 1 and one.answer else []  # type: ignore[list-item]
    found: list[tuple[bytes, str]] = []
    for part in (p for m in one.messages for p in m.parts):
        if isinstance(part, Picture):
            found.append((part.source, ""))  # type: ignore[arg-type]
        elif isinstance(part, Text) and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {part.text}".strip())
    return [(data, told) for data, told in found if told]


def _note(doc: Document, step: str, model: str, scores: Sequence[float], **limit: Any) -> None:
    kept = [round(score, 3) for score in scores]
    note(doc, step, model=model, scores=kept, **limit)
