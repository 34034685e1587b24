"""Perceptual hashes of images: 64 signs of an image's lowest frequencies, and the correlation of two images.

>>> thumb = thumbnail(image)                               # 128 x 128 pixels, the input of all else
>>> image_hash(thumb)                                      # uint64
>>> crop_hashes(thumb).shape                               # hashes of 2401 crops
>>> align(thumbnail(copy), thumb, box)                     # 0.99, and the region of `thumb` that the copy shows

The hash is pHash (Zauner's thesis, 2010): signs of a cosine transform's lowest coefficients. A crop's transform is a
product of three matrices, (cosines over the crop's rows) x (image) x (cosines over its columns), so that thousands of
crops of an image cost milliseconds, and a copy is found whichever sides were cut.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt64
from PIL import Image

SIDE = 128  # pixels of a thumbnail
CROP_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Shares of a side that crops cut off, on each of the four sides."""
COARSE, FINE = 32, 64  # cells of a side in which two images are compared, first and later
MIN_START_CORRELATION = 0.3
"""Correlation below which moving a crop's edges can't find a copy; twice that, once they are right to 2 %."""
MIN_CONTRAST = 2.0
"""Standard deviation, in grey levels of 255, below which an image has nothing to recognize."""
NOISE_FLOOR = 0.02
"""Coefficients below this share of their root mean square are noise: their sign counts as minus."""
_ORDERS = sorted(
    ((r, c) for r in range(11) for c in range(11) if r + c), key=lambda rc: (sum(rc), rc)
)[:64]


class Box(NamedTuple):
    """A region of an image, as shares of its sides."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


WHOLE = Box()


def thumbnail(image: Image.Image) -> Float[np.ndarray, "128 128 3"]:
    """Return an image of any size as [128, 128, RGB], 0 to 255."""
    resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(resized, np.float32)


def is_flat(thumb: Float[np.ndarray, "128 128 3"]) -> bool:
    """Return whether an image has nothing to recognize: an empty sheet matches every other."""
    return bool(thumb.std((0, 1)).max() < MIN_CONTRAST)


def _grey(thumb: np.ndarray) -> np.ndarray:
    return thumb @ np.array([0.3, 0.59, 0.11], np.float32)


@cache
def _cosines(start: float, end: float, count: int = 11) -> Float[np.ndarray, "count 128"]:
    """Cosines of orders 0 to `count` - 1 over the part of a side from `start` to `end`, zero outside."""
    middle = np.arange(SIDE) + 0.5
    low, high = start * SIDE, end * SIDE
    inside = np.clip(np.minimum(middle + 0.5, high) - np.maximum(middle - 0.5, low), 0, 1)
    phase = np.pi * np.clip((middle - low) / (high - low), 0, 1)
    waves = inside * np.cos(np.arange(count)[:, None] * phase) / (high - low)
    waves[1:] -= waves[1:].sum(1, keepdims=True) * inside / inside.sum()
    return np.asarray(waves, np.float32)


def _pack(coefficients: Float[np.ndarray, "*n 11 11"]) -> UInt64[np.ndarray, "*n"]:
    """Return the signs of the 64 coefficients of lowest order except the mean, as 64 bits."""
    rows, cols = np.array(_ORDERS).T
    lowest = coefficients[..., rows, cols]
    faint = NOISE_FLOOR * np.sqrt((lowest**2).mean(-1, keepdims=True))
    bits = np.packbits(np.ascontiguousarray(lowest > faint), axis=-1)
    return np.ascontiguousarray(bits).view(np.uint64)[..., 0]


def image_hash(thumb: Float[np.ndarray, "128 128 3"], box: Box = WHOLE) -> np.uint64:
    """Return the hash of an image, or of a region of it."""
    rows, cols = _cosines(box.top, box.bottom), _cosines(box.left, box.right)
    return np.uint64(_pack(rows @ _grey(thumb) @ cols.T))


@cache
def boxes() -> tuple[Box, ...]:
    """Return all crops of the index: each side cut by each of `CROP_SHARES`, the whole image first."""
    spans = [(a, 1 - b) for a in CROP_SHARES for b in CROP_SHARES]
    return tuple(Box(left, top, right, bottom) for top, bottom in spans for left, right in spans)


def crop_hashes(thumb: Float[np.ndarray, "128 128 3"]) -> UInt64[np.ndarray, " 2401"]:
    """Return the hashes of all `boxes()` of an image."""
    spans = [_cosines(a, 1 - b) for a in CROP_SHARES for b in CROP_SHARES]
    stack = np.stack(spans)  # [49, 11, 128]
    rows = stack @ _grey(thumb)  # [49, 11, 128]
    both = np.einsum("rap,cbp->rcab", rows, stack, optimize=True)
    return _pack(both).reshape(-1)


def distance(a: UInt64[np.ndarray, "*n"] | np.uint64, b: np.uint64) -> np.ndarray:
    """Return the number of different bits of hashes, 0 to 64; unrelated images differ in about 32."""
    return np.bitwise_count(np.bitwise_xor(a, b))


@lru_cache(1024)
def _cells(start: float, end: float, count: int) -> Float[np.ndarray, "count 128"]:
    """Means over `count` equal cells between two points of a side."""
    edges = np.linspace(start, end, count + 1) * SIDE
    pixel = np.arange(SIDE)
    share = np.clip(
        np.minimum(pixel + 1, edges[1:, None]) - np.maximum(pixel, edges[:-1, None]), 0, 1
    )
    return np.asarray(share / np.maximum(share.sum(1, keepdims=True), 1e-6), np.float32)


def _part(thumb: np.ndarray, box: Box, count: int) -> np.ndarray:
    """Return a region of an image in `count` x `count` cells, each colour centred, of norm 1."""
    rows, cols = _cells(box.top, box.bottom, count), _cells(box.left, box.right, count)
    high = (rows @ thumb.reshape(SIDE, -1)).reshape(count, SIDE, 3)
    part = high.transpose(0, 2, 1) @ cols.T  # [count, RGB, count]
    part -= part.mean((0, 2))[None, :, None]
    return np.asarray(part / max(1e-6, float(np.linalg.norm(part))))


def correlation(a: Float[np.ndarray, "128 128 3"], b: Float[np.ndarray, "128 128 3"]) -> float:
    """Return the correlation of the colours of two whole images: 1 for a copy, at any brightness and contrast."""
    return float((_part(a, WHOLE, FINE) * _part(b, WHOLE, FINE)).sum())


def align(
    copy: Float[np.ndarray, "128 128 3"], thumb: Float[np.ndarray, "128 128 3"], box: Box = WHOLE
) -> tuple[float, Box]:
    """Return (correlation of the colours of `copy` with a region of `thumb`, that region). The search starts at `box`.
    The correlation of a copy is 1 at any size, brightness and contrast."""
    region = box
    for step, cells, least in (
        (0.02, COARSE, MIN_START_CORRELATION),
        (0.01, FINE, 2 * MIN_START_CORRELATION),
        (0.005, FINE, 0),
    ):
        target = _part(copy, WHOLE, cells)
        best = float((_part(thumb, region, cells) * target).sum())
        moved = best >= least
        while moved:
            moved = False
            for move in _MOVES:
                edges = [round(e + step * m, 4) for e, m in zip(region, move, strict=True)]
                b = Box(*(min(1.0, max(0.0, e)) for e in edges))
                if min(b.right - b.left, b.bottom - b.top) <= 0.3 or b == region:
                    continue
                if (score := float((_part(thumb, b, cells) * target).sum())) > best:
                    best, region, moved = score, b, True
        if best < least:
            break
    return best, region


_MOVES = [
    *((s, 0, 0, 0) for s in (1, -1)),
    *((0, s, 0, 0) for s in (1, -1)),
    *((0, 0, s, 0) for s in (1, -1)),
    *((0, 0, 0, s) for s in (1, -1)),
    *((s, 0, s, 0) for s in (1, -1)),
    *((0, s, 0, s) for s in (1, -1)),
]
