"""Widths and heights of generated images, at sizes whose images have more than one crop.

>>> sizes = ImageSizes(crop=448, max_crops=36, tokens=64_512)
>>> rng = Random(0)
>>> sizes.draw(rng), sizes.draw(rng, images=16)          # one image; each of 16 images of a row
((2424, 1375), (489, 830))

The area is log-uniform from a quarter of a crop to `max_crops`, and the aspect ratio from 1:3 to 3:1 [ours]. The report
gives the maxima: 16 and 36 crops (2.2.1), a context of 64k tokens (2.2.2).
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from random import Random

from polyphi.processing import image

ASPECT = 3.0
"""Longer side over the shorter one, at most."""
SMALLEST = 0.25
"""Area of the smallest image in crops."""


@dataclass(frozen=True)
class ImageSizes:
    """`crop` is a crop's side in pixels. An image has at most `max_crops`, and all images of a row `tokens`."""

    crop: int
    max_crops: int
    tokens: int

    def draw(self, rng: Random, images: int = 1) -> tuple[int, int]:
        """Return (width, height) in pixels of each of `images` images of a row. Raises ValueError if so many don't fit
        a row."""
        area = exp(rng.uniform(log(SMALLEST), log(self.max_crops))) * self.crop**2
        aspect = exp(rng.uniform(-log(ASPECT), log(ASPECT)))
        width, height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        while not self._fits(width, height, images):
            width, height = int(0.95 * width), int(0.95 * height)
            if min(width, height) < image.MIN_SIDE:
                raise ValueError(
                    f"{images} images don't fit a row of {self.tokens} tokens of images; expected at most {self.most}"
                )
        return width, height

    @property
    def most(self) -> int:
        """Images of one crop that fit a row."""
        return self.tokens // self.count_tokens(self.crop, self.crop)

    def count_tokens(self, width: int, height: int) -> int:
        """Return the tokens of an image."""
        limit = self.max_crops
        return image.count_tokens(width, height, crop_size=self.crop, max_crops=limit)

    def _fits(self, width: int, height: int, images: int) -> bool:
        crops = -(-width // self.crop) * -(-height // self.crop)
        return crops <= self.max_crops and (
            images * self.count_tokens(width, height) <= self.tokens
        )
