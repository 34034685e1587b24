"""Scenes: the random choices of drawn images, and the samples made with them.

>>> def colour(scene: Scene) -> SceneSample:
...     answer = scene.answer(("red", "blue"))                       # random in training, in turn in the test split
...     return image_question(sheet((112, 112), COLOUR_RGB[answer]), "What colour is this?", answer)
>>> samples("colours", work, {"colour": (1, colour)})                # yields (split, Sample)
>>> fresh("colours", work, {"colour": (1, colour)})(12)              # a training sample that is not in the split

A sample depends only on the seed, its corpus, its split and its number.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Image as ImagePart
from polyphi.types.parts import Part
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.raw.packages import SOURCES
from polyphi_recipe.synthetic.images import (
    ASCII_FONTS,
    FONTS,
    PAIRS,
    PALE,
    PAPERS,
    RGB,
    SCANS,
    SIDE,
    annotations,
    contrast,
    png,
    scan_numbers,
    sheet,
    stamp_shape,
    turns,
)
from polyphi_recipe.synthetic.stamps import STAMPS, Album, Stamp
from polyphi_recipe.text import lexicon

OTHER_LANGUAGES = 0.2  # share of questions asked in a language other than English
WIDE = 0.08  # share of images larger than one crop


@dataclass(frozen=True)
class Scene:
    """The state that one sample is drawn with: random generator, split, number within its task, available stamps, and
    languages of the questions. At sizes with `image_sizes`, each image has `pixels` (width, height), whatever its
    units; without, one per unit."""

    rng: random.Random
    split: str
    index: int
    album: Album = field(default_factory=Album)
    languages: tuple[str, ...] = tuple(lexicon.LANGUAGES)
    image_sizes: ImageSizes | None = None
    pixels: tuple[int, int] | None = None

    def answer(self, answers: Sequence[Any], every: int = 1) -> Any:
        """Return one of the answers: a random one in training; in the test split in turn, the next one after `every`
        samples, so that answers are balanced."""
        return (
            answers[self.index // every % len(answers)]
            if self.split == "test"
            else self.rng.choice(answers)
        )

    def language(self, share: float = OTHER_LANGUAGES) -> str:
        others = [language for language in self.languages if language != "en"]
        return self.rng.choice(others) if self.rng.random() < share else "en"

    def several(self, images: int) -> "Scene":
        """Return the scene for samples of `images` images: they fit a row, and have the same size."""
        if self.image_sizes is None:
            return self
        return replace(self, pixels=self.image_sizes.draw(self.rng, images))

    def count(self, least: int, most: int | None = None) -> int:
        """Return a number of images: `least` at sizes of small images, else log-uniform up to `most`, or to what fits a
        row."""
        if self.image_sizes is None:
            return least
        most = min(self.image_sizes.most, most or self.image_sizes.most)
        return int(math.exp(self.rng.uniform(math.log(least), math.log(most + 1))))

    def sheet(self, size: tuple[int, int], paper: RGB) -> Image.Image:
        """Return an empty image of (width, height) units."""
        return sheet(size, paper, self.pixels)

    def crops(self) -> float:
        """Return the area of an image in crops; that of the small sizes is 1."""
        if self.pixels is None or self.image_sizes is None:
            return 1.0
        return self.pixels[0] * self.pixels[1] / self.image_sizes.crop**2

    def part(self, size: tuple[int, int], whole: tuple[int, int]) -> "Scene":
        """Return the scene for an image of `size` units that becomes a part of another one of `whole` units."""
        if self.pixels is None:
            return self
        scale = min(p / w for p, w in zip(self.pixels, whole, strict=True))
        return replace(self, pixels=(round(size[0] * scale), round(size[1] * scale)))

    def size(self, share: float = WIDE) -> tuple[int, int]:
        """Return (width, height) in units: usually `SIDE` x `SIDE`, with probability `share` twice as wide, or also
        twice as high. In large images it grows with their pixels, so that things are from a fraction of a crop to the
        whole image."""
        if self.pixels is not None and self.image_sizes is not None:
            width, height = (max(1, round(2 * p / self.image_sizes.crop)) for p in self.pixels)
            part = self.rng.uniform(1 / max(width, height), 1)
            return SIDE * max(1, round(part * width)), SIDE * max(1, round(part * height))
        return (
            self.rng.choice([(2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE)])
            if self.rng.random() < share
            else (SIDE, SIDE)
        )

    def paper(self, *colours: RGB) -> RGB:
        """Return a background that contrasts with all `colours`; without any, a pale one for text."""
        papers = [p for p in PAPERS if all(math.dist(p, c) > 110 for c in colours)]
        return self.rng.choice(papers if colours else PALE)

    def ink(self, paper: RGB) -> RGB:
        """Return a dark colour for pale paper, a bright one for dark paper."""
        darkest = 0 if contrast(paper, (0, 0, 0)) > 128 else 150
        r, g, b = (darkest + self.rng.randrange(105) for _ in range(3))
        return r, g, b

    def tint(self, colour: str) -> RGB:
        """Return a colour of the lexicon with a small random offset."""
        r, g, b = (
            min(255, max(0, v + self.rng.randint(-12, 12))) for v in lexicon.COLOUR_RGB[colour]
        )
        return r, g, b

    def turn(self, shape: str, colour: str) -> int:
        """Return a rotation in degrees that this split uses for a shape of a colour."""
        return self.rng.choice(turns(self.split, shape, colour))

    def pair(self) -> tuple[str, str]:
        """Return a random (shape, colour)."""
        return self.rng.choice(PAIRS)

    def shape(
        self, image: Image.Image, shape: str, colour: str, corner: tuple[int, int], side: int
    ) -> None:
        """Draw a shape with a random tint of a colour and a rotation of the split; its annotation is "red star"."""
        tint, turn = self.tint(colour), self.turn(shape, colour)
        stamp_shape(image, shape, corner, side, tint, turn=turn, label=f"{colour} {shape}")

    def font(self, text: str) -> str:
        """Return a font of the split that has the characters of `text`."""
        plain = text.isascii()
        return self.rng.choice([f for f in FONTS[self.split] if plain or f not in ASCII_FONTS])

    def scan(self, digit: int) -> int:
        return self.rng.choice(scan_numbers(self.split, digit))

    def stamp(self, category: str | None = None) -> Stamp:
        """Return a stamp of the split, of this category unless it is None."""
        stamps = self.album.of(self.split, category)
        assert stamps, f"no {self.split} stamps of category {category}"
        return self.rng.choice(stamps)

    def corner(
        self, size: tuple[int, int], item: tuple[int, int], margin: int = 2
    ) -> tuple[int, int]:
        """Return a random upper left corner for an item of (width, height) inside an image of `size`."""
        x, y = (
            self.rng.randint(min(margin, max(0, s - i)), max(margin, s - i - margin))
            for s, i in zip(size, item, strict=True)
        )
        return x, y

    def scatter(
        self, count: int, side: int, size: tuple[int, int] = (SIDE, SIDE)
    ) -> list[tuple[int, int]]:
        """Return corners for `count` items of `side` pixels that don't overlap, each at random in its own grid cell.
        Raises `ValueError` if they don't fit."""
        cols, rows = max(1, size[0] // (side + 3)), max(1, size[1] // (side + 3))
        if cols * rows < count:
            raise ValueError(
                f"{count} items of {side} pixels don't fit a picture of {size}; expected at most {cols * rows}"
            )
        wide, high = size[0] / cols, size[1] / rows
        cells = self.rng.sample([(c, r) for r in range(rows) for c in range(cols)], count)
        return [
            (
                int(c * wide + self.rng.uniform(1, wide - side - 1)),
                int(r * high + self.rng.uniform(1, high - side - 1)),
            )
            for c, r in cells
        ]


@dataclass(frozen=True)
class SceneSample:
    """Result of a maker: the conversation, the source of its images (that of the scan, stamp or page in them, else
    "polyphi"), its language, and further `meta`."""

    messages: tuple[Message, ...]
    source: str = "polyphi"
    language: str = "en"
    meta: Mapping[str, Any] = field(default_factory=dict)


def strictest_source(sources_used: Sequence[str]) -> str:
    """Return the source with the strictest licence: stamps before scans before our own renderings."""
    return next((source for source in (STAMPS, SCANS) if source in sources_used), "polyphi")


def image_question(
    images: Image.Image | bytes | Sequence[Image.Image],
    question: str,
    answer: object,
    source: str = "polyphi",
    language: str = "en",
    /,
    **meta: Any,
) -> SceneSample:
    """Return a question about images with its answer. Bytes are an encoded image, such as a photo. `meta["named"]`
    holds the annotations of each drawn image (`label_grids.LabelledBox`)."""
    if isinstance(images, bytes):
        parts: list[Part | str] = [ImagePart(images)]
    else:
        drawn_images = [images] if isinstance(images, Image.Image) else images
        parts = [ImagePart(png(p)) for p in drawn_images]
        meta["named"] = [[list(thing) for thing in annotations(p)] for p in drawn_images]
    return SceneSample(
        (Message.user(*parts, question), Message.assistant(str(answer))), source, language, meta
    )


Maker = Callable[[Scene], SceneSample]
Makers = Mapping[str, tuple[float, Maker]]
"""Task -> (share of the training set, maker)."""


def samples(
    corpus: str,
    work: Work,
    makers: Makers,
    album: Album | None = None,
    tests: Sequence[str] = (),
) -> Iterator[tuple[str, Sample]]:
    """Yield (split, sample) for every split of `work`. Training draws makers by weight; the test split uses them in
    turn, only those in `tests` if it isn't empty. `meta` holds the task (the maker's name) and the language."""
    for split, rows in work.rows.items():
        for i in range(rows):
            yield split, _sample(corpus, work, split, i, makers, album, tests)


def fresh(
    corpus: str, work: Work, makers: Makers, album: Album | None = None
) -> Callable[[int], Sample]:
    """Return the generator for `Corpus.fresh`: number -> a training sample that is no row of the training split."""
    return lambda number: _sample(corpus, work, "fresh", number, makers, album)


def _sample(
    corpus: str,
    work: Work,
    split: str,
    number: int,
    makers: Makers,
    album: Album | None,
    tests: Sequence[str] = (),
) -> Sample:
    """Return sample `number` of a split, or of the "fresh" training samples."""
    side = "train" if split == "fresh" else split
    rng = random.Random(f"{work.seed} {corpus} {split} {number}")
    names = [name for name in makers if side == "train" or not tests or name in tests]
    if side == "train":
        task = rng.choices(names, [weight for weight, _ in makers.values()])[0]
    else:
        task = names[number % len(names)]
    scene = Scene(
        rng, side, number // len(names), album or Album(), work.languages, work.image_sizes
    ).several(1)
    drawn = makers[task][1](scene)
    return Sample(
        f"{corpus}-{split}-{number:06d}",
        drawn.messages,
        drawn.source,
        SOURCES[drawn.source].licence,
        {"task": task, "language": drawn.language, **drawn.meta},
    )
