"""Scenes: the dice that pictures are made with, and samples made of them.

>>> def seen(scene: Scene) -> Made:
...     colour = scene.answer(("red", "blue"))                       # in training by chance, in the test split in turn
...     return asked(sheet((112, 112), COLOUR_RGB[colour]), "What colour is this?", colour)
>>> samples("colours", work, {"colour": (1, seen)})                  # yields (split, Sample)
>>> fresh("colours", work, {"colour": (1, seen)})(12)                # a training sample beside those of the split

A sample depends on the seed, its corpus, its split and its number alone.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from polyphi.curate.corpus import Work
from polyphi.curate.sources import SOURCES
from polyphi.data.shards import Sample
from polyphi.messages import Image as Picture
from polyphi.messages import Message, Part
from polyphi.synthetic.images import (
    ASCII_FONTS,
    FONTS,
    PAIRS,
    PALE,
    PAPERS,
    RGB,
    SCANS,
    SIDE,
    contrast,
    named,
    png,
    scan_numbers,
    stamp_shape,
    turns,
)
from polyphi.synthetic.stamps import STAMPS, Album, Stamp
from polyphi.text import lexicon

OTHER_LANGUAGES = 0.2  # share of questions asked in a language other than English
WIDE = 0.08  # share of pictures larger than one crop


@dataclass(frozen=True)
class Scene:
    """What one sample is drawn with: its dice, its split, its number within its task, the stamps at hand, and the
    languages of its questions."""

    rng: random.Random
    split: str
    index: int
    album: Album = field(default_factory=Album)
    languages: tuple[str, ...] = tuple(lexicon.LANGUAGES)

    def answer(self, answers: Sequence[Any], every: int = 1) -> Any:
        """One of the answers: by chance in training; in the test split in turn, the next one after `every` samples, so
        that answers are balanced."""
        return (
            answers[self.index // every % len(answers)]
            if self.split == "test"
            else self.rng.choice(answers)
        )

    def language(self, share: float = OTHER_LANGUAGES) -> str:
        others = [language for language in self.languages if language != "en"]
        return self.rng.choice(others) if self.rng.random() < share else "en"

    def size(self, share: float = WIDE) -> tuple[int, int]:
        """(width, height): mostly one crop, now and then two or four."""
        return (
            self.rng.choice([(2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE)])
            if self.rng.random() < share
            else (SIDE, SIDE)
        )

    def paper(self, *colours: RGB) -> RGB:
        """A background on which all these colours can be seen; without any a pale one, for writing."""
        found = [p for p in PAPERS if all(math.dist(p, c) > 110 for c in colours)]
        return self.rng.choice(found if colours else PALE)

    def ink(self, paper: RGB) -> RGB:
        """A dark colour for pale paper, a bright one for dark paper."""
        least = 0 if contrast(paper, (0, 0, 0)) > 128 else 150
        r, g, b = (least + self.rng.randrange(105) for _ in range(3))
        return r, g, b

    def tint(self, colour: str) -> RGB:
        """A colour of the lexicon, a little off."""
        r, g, b = (
            min(255, max(0, v + self.rng.randint(-12, 12))) for v in lexicon.COLOUR_RGB[colour]
        )
        return r, g, b

    def turn(self, shape: str, colour: str) -> int:
        """Degrees by which a shape of a colour is turned in this split."""
        return self.rng.choice(turns(self.split, shape, colour))

    def pair(self) -> tuple[str, str]:
        """A (shape, colour)."""
        return self.rng.choice(PAIRS)

    def shape(
        self, picture: Image.Image, shape: str, colour: str, corner: tuple[int, int], side: int
    ) -> None:
        """Draw a shape of a colour, a little off its tint, turned as the split allows; it is named "red star"."""
        tint, turn = self.tint(colour), self.turn(shape, colour)
        stamp_shape(picture, shape, corner, side, tint, turn=turn, words=f"{colour} {shape}")

    def font(self, text: str) -> str:
        """A font of the split that has the letters of `text`."""
        plain = text.isascii()
        return self.rng.choice([f for f in FONTS[self.split] if plain or f not in ASCII_FONTS])

    def scan(self, digit: int) -> int:
        return self.rng.choice(scan_numbers(self.split, digit))

    def stamp(self, kind: str | None = None) -> Stamp:
        """A stamp of the split, of a kind if one is named."""
        found = self.album.of(self.split, kind)
        assert found, f"no {self.split} stamps of kind {kind}"
        return self.rng.choice(found)

    def corner(
        self, size: tuple[int, int], item: tuple[int, int], margin: int = 2
    ) -> tuple[int, int]:
        """Where to put the upper left corner of an item of (width, height) so that it lies inside."""
        x, y = (
            self.rng.randint(min(margin, max(0, s - i)), max(margin, s - i - margin))
            for s, i in zip(size, item, strict=True)
        )
        return x, y

    def scatter(
        self, count: int, side: int, size: tuple[int, int] = (SIDE, SIDE)
    ) -> list[tuple[int, int]]:
        """Corners for `count` items of `side` pixels that don't overlap: each moved about within a cell of its own."""
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
class Made:
    """What a maker hands back: the conversation, where its pictures come from (what shows a scan, a stamp or a page of
    somebody's is theirs, the rest our own), its language, and what else to note."""

    messages: tuple[Message, ...]
    source: str = "polyphi"
    language: str = "en"
    meta: Mapping[str, Any] = field(default_factory=dict)


def strictest(found: Sequence[str]) -> str:
    """The source to name for something made of several: stamps before scans before our own renderings."""
    return next((source for source in (STAMPS, SCANS) if source in found), "polyphi")


def asked(
    pictures: Image.Image | bytes | Sequence[Image.Image],
    question: str,
    answer: object,
    source: str = "polyphi",
    language: str = "en",
    /,
    **meta: Any,
) -> Made:
    """A question about pictures, and its answer. Bytes are an encoded picture, such as a photo. `meta["named"]` says
    for each drawn picture what it shows and where (`images.Named`)."""
    if isinstance(pictures, bytes):
        parts: list[Part | str] = [Picture(pictures)]
    else:
        shown = [pictures] if isinstance(pictures, Image.Image) else pictures
        parts = [Picture(png(p)) for p in shown]
        meta["named"] = [[list(thing) for thing in named(p)] for p in shown]
    return Made(
        (Message.user(*parts, question), Message.assistant(str(answer))), source, language, meta
    )


Maker = Callable[[Scene], Made]
Makers = Mapping[str, tuple[float, Maker]]
"""Task -> (share of the training set, maker)."""


def samples(
    corpus: str,
    work: Work,
    makers: Makers,
    album: Album | None = None,
    tests: Sequence[str] = (),
) -> Iterator[tuple[str, Sample]]:
    """(split, sample) of every split of `work`. In training makers are drawn by weight; in the test split they take
    turns, only those named in `tests` if any is. `meta` names the task (the maker's name) and the language."""
    for split, rows in work.rows.items():
        for i in range(rows):
            yield split, _sample(corpus, work, split, i, makers, album, tests)


def fresh(
    corpus: str, work: Work, makers: Makers, album: Album | None = None
) -> Callable[[int], Sample]:
    """Training samples by number, endless, none of them a row of the training split: `Corpus.fresh`."""
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
    """Sample `number` of a split, or of the "fresh" training samples."""
    side = "train" if split == "fresh" else split
    rng = random.Random(f"{work.seed} {corpus} {split} {number}")
    names = [name for name in makers if side == "train" or not tests or name in tests]
    if side == "train":
        task = rng.choices(names, [weight for weight, _ in makers.values()])[0]
    else:
        task = names[number % len(names)]
    scene = Scene(rng, side, number // len(names), album or Album(), work.languages)
    made = makers[task][1](scene)
    return Sample(
        f"{corpus}-{split}-{number:06d}",
        made.messages,
        made.source,
        SOURCES[made.source].licence,
        {"task": task, "language": made.language, **made.meta},
    )
