"""Photos of pages: an image of a page with perspective, uneven light and blur.

>>> photo(page, rng)[:2]                              # a JPEG
b'\\xff\\xd8'

A photo has perspective (corners off by up to a fourteenth of a side), a table behind the page, shade, blur, noise and
JPEG artefacts. [ours] All strengths are chosen so that the page can still be read.
"""

import random

import numpy as np
from PIL import Image, ImageFilter

from polyphi_recipe.filters.images import encoded

TABLES: tuple[tuple[int, int, int], ...] = (
    (96, 72, 50),
    (58, 60, 66),
    (120, 116, 108),
    (40, 52, 44),
    (150, 126, 96),
)
"""Colours of the table under a photographed page."""
JPEG = (45, 90)
"""Lowest and highest JPEG quality of a photo."""


def photo(image: Image.Image, rng: random.Random) -> bytes:
    """Return JPEG bytes of an image's photo, of the image's size."""
    wide, high = image.size
    projected = _on_table(image, rng)
    pixels = np.asarray(projected.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6)))).astype(
        np.float32
    )
    # Light falls off along a line through the image, by up to two fifths.
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.4)
    x, y = np.linspace(-0.5, 0.5, wide), np.linspace(-0.5, 0.5, high)[:, None]
    shade = 1 - fall * (0.5 + (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2))
    noise = np.random.default_rng(rng.randrange(1 << 32)).normal(0, rng.uniform(1, 7), pixels.shape)
    lit = pixels * shade[..., None] + noise
    return encoded(
        Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)), quality=rng.randint(*JPEG)
    )


def _on_table(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image on a table in perspective: each corner moves inwards by up to a fourteenth of a side."""
    wide, high = image.size
    corners = np.array([(0, 0), (wide, 0), (wide, high), (0, high)], float)
    inwards = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], float)
    moved = corners + inwards * [
        (rng.uniform(0, wide / 14), rng.uniform(0, high / 14)) for _ in corners
    ]
    table = Image.new("RGB", image.size, rng.choice(TABLES))
    coefficients = _projection(moved, corners)
    page = image.transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    inside = Image.new("L", image.size, 255).transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    table.paste(page, (0, 0), inside)
    return table


def _projection(projected: np.ndarray, flat: np.ndarray) -> tuple[float, ...]:
    """Return the eight coefficients of the projection from points `projected` [4 2] to `flat` [4 2], in Pillow's order:
    x' = (a x + b y + c) / (g x + h y + 1)."""
    rows, right = [], []
    for (x, y), (u, v) in zip(projected, flat, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(right)).tolist())
