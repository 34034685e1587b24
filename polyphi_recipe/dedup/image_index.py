"""An index of images that finds copies: resized, recompressed, or with up to 30 % cut off each side.

>>> known = ImageHashIndex.of([image])
>>> known.find(image.crop((40, 20, 300, 200)))
[Match(item=0, distance=3, score=0.997, box=Box(left=0.1, top=0.05, right=0.75, bottom=0.5))]

The index holds the hashes of 2401 crops of each image. A hash within 16 bits of 64 is a candidate; the decision is by
the correlation of the two images' colours, after the crop is located to half a percent of a side.

Mirrored or rotated copies are not found, nor images of which the indexed one is a part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from polyphi_recipe.dedup.phash import (
    SIDE,
    WHOLE,
    Box,
    align,
    boxes,
    correlation,
    crop_hashes,
    distance,
    image_hash,
    is_flat,
    thumbnail,
)

MAX_DISTANCE = 16
"""Bits of 64 that may differ before images are compared."""
MAX_WHOLE_DISTANCE = 8
"""`MAX_DISTANCE` where only copies of the whole image are searched for: resized and recompressed ones differ in a bit
or two."""
MAX_CANDIDATES = 8
"""Indexed images that an image is compared with, the nearest first."""
MIN_CORRELATION = 0.92
"""Correlation from which one image is a copy of another."""


class Match(NamedTuple):
    """The item (its number), the bits that differ, the correlation, and the region of the indexed image."""

    item: int
    distance: int
    score: float
    box: Box


@dataclass(frozen=True)
class ImageHashIndex:
    """An index of images: hashes of crops [P, 2401], or of the whole alone [P, 1], and their thumbnails, uint8
    [P, 128, 128, 3]."""

    crops: np.ndarray
    looks: np.ndarray

    @classmethod
    def of(cls, images: Iterable[Image.Image], cropped: bool = True) -> "ImageHashIndex":
        """Build an index; an item's number is its position. Empty sheets keep their number and match nothing. With
        `cropped=False` only copies of the whole are found, a hundred times as fast."""
        hashes, looks = [], []
        for image in images:
            thumb = thumbnail(image)
            hashes.append(crop_hashes(thumb) if cropped else [image_hash(thumb)])
            looks.append(thumb.round().astype(np.uint8))
        return cls(
            np.array(hashes, np.uint64).reshape(-1, len(boxes()) if cropped else 1),
            np.array(looks, np.uint8).reshape(-1, SIDE, SIDE, 3),
        )

    @classmethod
    def joined(cls, parts: Sequence["ImageHashIndex"]) -> "ImageHashIndex":
        """Concatenate several indices and their items."""
        parts = parts or [cls.of([])]
        return cls(
            np.concatenate([p.crops for p in parts]), np.concatenate([p.looks for p in parts])
        )

    def find(self, image: Image.Image) -> list[Match]:
        """Return every indexed image of which this one is a copy, or a copy of a part."""
        thumb = thumbnail(image)
        if is_flat(thumb) or not len(self.looks):
            return []
        own = image_hash(thumb)
        nearest = np.empty(len(self.crops), np.uint8)
        which = np.empty(len(self.crops), np.int64)
        for start in range(0, len(self.crops), 256):
            bits = distance(self.crops[start : start + 256], own)
            which[start : start + 256] = bits.argmin(1)
            nearest[start : start + 256] = bits.min(1)
        matches = []
        cropped = self.crops.shape[1] > 1
        for item in np.argsort(nearest, kind="stable")[:MAX_CANDIDATES].tolist():
            if nearest[item] > (MAX_DISTANCE if cropped else MAX_WHOLE_DISTANCE):
                break
            known = self.looks[item].astype(np.float32)
            start_box = boxes()[which[item]]
            score, box = (
                align(thumb, known, start_box) if cropped else (correlation(thumb, known), WHOLE)
            )
            if score >= MIN_CORRELATION and not is_flat(known):
                matches.append(Match(item, int(nearest[item]), round(score, 4), box))
        return matches
