"""Pictures that are known, and copies of them: resized, recompressed, or with up to 30 % cut off each side.

>>> known = Pictures.of([picture])
>>> known.find(picture.crop((40, 20, 300, 200)))
[Match(item=0, distance=3, score=0.997, box=Box(left=0.1, top=0.05, right=0.75, bottom=0.5))]

Each known picture is there with the hashes of 2401 crops. A hash within 16 bits of 64 is a suspicion; what decides is
the correlation of the two pictures' colours, once the crop is found to half a percent of a side.

Mirrored or turned copies are not found, nor pictures of which the known one is a part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from polyphi.curate.phash import (
    SIDE,
    WHOLE,
    Box,
    alike,
    boxes,
    crops,
    distance,
    is_flat,
    likeness,
    look,
    signs,
)

RADIUS = 16
"""Bits of 64 that may differ before pictures are compared."""
NEAR = 8
"""The same where only copies of the whole are looked for: resized and recompressed ones differ in a bit or two."""
SUSPECTS = 8
"""Known pictures that a picture is compared with, the nearest first."""
SAME = 0.92
"""Correlation from which one picture is a copy of another."""


class Match(NamedTuple):
    """Which item (by number), the bits that differ, the correlation, and the part of the known picture it is."""

    item: int
    distance: int
    score: float
    box: Box


@dataclass(frozen=True)
class Pictures:
    """An index of pictures: hashes of crops [P, 2401], or of the whole alone [P, 1], and what they look like, uint8
    [P, 128, 128, 3]."""

    crops: np.ndarray
    looks: np.ndarray

    @classmethod
    def of(cls, pictures: Iterable[Image.Image], cropped: bool = True) -> "Pictures":
        """An item's number is its place in the row. Empty sheets keep their place and match nothing. With
        `cropped=False` only copies of the whole are found, a hundred times as fast."""
        hashes, looks = [], []
        for picture in pictures:
            seen = look(picture)
            hashes.append(crops(seen) if cropped else [signs(seen)])
            looks.append(seen.round().astype(np.uint8))
        return cls(
            np.array(hashes, np.uint64).reshape(-1, len(boxes()) if cropped else 1),
            np.array(looks, np.uint8).reshape(-1, SIDE, SIDE, 3),
        )

    @classmethod
    def joined(cls, parts: Sequence["Pictures"]) -> "Pictures":
        """Several indices as one, their items one after another."""
        parts = parts or [cls.of([])]
        return cls(
            np.concatenate([p.crops for p in parts]), np.concatenate([p.looks for p in parts])
        )

    def find(self, picture: Image.Image) -> list[Match]:
        """Every known picture of which this one is a copy, or the copy of a part."""
        seen = look(picture)
        if is_flat(seen) or not len(self.looks):
            return []
        own = signs(seen)
        nearest = np.empty(len(self.crops), np.uint8)
        which = np.empty(len(self.crops), np.int64)
        for start in range(0, len(self.crops), 256):
            bits = distance(self.crops[start : start + 256], own)
            which[start : start + 256] = bits.argmin(1)
            nearest[start : start + 256] = bits.min(1)
        found = []
        cropped = self.crops.shape[1] > 1
        for item in np.argsort(nearest, kind="stable")[:SUSPECTS].tolist():
            if nearest[item] > (RADIUS if cropped else NEAR):
                break
            known = self.looks[item].astype(np.float32)
            around = boxes()[which[item]]
            score, box = alike(seen, known, around) if cropped else (likeness(seen, known), WHOLE)
            if score >= SAME and not is_flat(known):
                found.append(Match(item, int(nearest[item]), round(score, 4), box))
        return found
