"""Tux Paint's stamps: some 950 small images with transparent backgrounds and captions in eight languages.

>>> album = load(work)                                  # empty, with one log line, if the package is unavailable
>>> album.of("train", "bird")[0].captions["fr"]
'une perruche Adélaïde'

The package is unpacked into the cache and never vendored (GPL-2).
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import packages
from polyphi_recipe.synthetic.images import PAPERS, RGB, bucket, contrast
from polyphi_recipe.text import lexicon

STAMPS = "tuxpaint-stamps-default"
STAMP_FOLDER = Path("usr/share/tuxpaint/stamps")
LARGEST = 96  # maximum of a stamp's longer side in pixels

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CATEGORIES: dict[str, tuple[list[str], str]] = {
    category: (patterns, exclude) for category, (patterns, exclude) in _DATA["kinds"].items()
}
"""Category of an object -> (patterns of stamp ids, pattern of exceptions); categories are easy to tell apart."""
CATEGORY_WORDS: dict[str, lexicon.Words] = {
    **{name: lexicon.NOUNS[name] for name in ("bird", "flower", "hat", "house", "ball")},
    **_DATA["kind_words"],
}
"""Category -> its word in each language."""


def held_out(stamp: str) -> bool:
    """Return whether a stamp, its caption, recording and sound belong to the test split of every corpus: one id in
    eight. `stamp` is its path in the package without the suffix. With this salt every category has at least two."""
    return bucket(f"stamp 2794 {stamp.removesuffix('_mirror')}", 8) == 0


@dataclass(frozen=True)
class Stamp:
    """An image with a transparent background. `id` is its path in the package without ".png"; `captions` are by
    language."""

    id: str
    path: Path
    captions: Mapping[str, str] = field(compare=False)
    category: str | None

    @property
    def split(self) -> str:
        return "test" if held_out(self.id) else "train"

    def cutout(self, side: int, scale: float = 1.0) -> Image.Image:
        """Return the stamp cropped to its opaque part, RGBA, its longer side `side` units of `scale` pixels. In larger
        images than those of the small sizes, a stamp isn't enlarged beyond its own pixels."""
        if scale == 1:
            whole = _cutout(self.path)
            factor = side / max(whole.size)
        else:
            whole = _opaque(self.path)
            factor = min(1.0, side * scale / max(whole.size))
        size = (max(1, round(whole.width * factor)), max(1, round(whole.height * factor)))
        return whole.resize(size, Image.Resampling.BILINEAR)

    def paper(self, rng: random.Random) -> RGB:
        """Return a background that contrasts with the stamp."""
        lightness = _lightness(self.path)
        papers = [p for p in PAPERS if abs(contrast(p, (0, 0, 0)) - lightness) > 50] or list(PAPERS)
        return rng.choice(papers)


def _opaque(path: Path) -> Image.Image:
    """Return the opaque part of a stamp in its own pixels."""
    with Image.open(path) as file:
        whole = file.convert("RGBA")
    return whole.crop(whole.getchannel("A").point([0] * 24 + [255] * 232).getbbox())


@cache
def _cutout(path: Path) -> Image.Image:
    whole = _opaque(path)
    whole.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return whole


@cache
def _lightness(path: Path) -> float:
    """Return the mean brightness of the opaque part, 0 to 255."""
    pixels = np.asarray(_cutout(path), np.float32)
    weights = pixels[..., 3]
    return float(
        (pixels[..., :3] @ np.array([0.3, 0.59, 0.11]) * weights).sum() / max(weights.sum(), 1.0)
    )


CAPTION_LANGUAGES = {"zh": ("zh_CN",), "pt": ("pt_BR", "pt")}
LONGEST_CAPTION = 40  # characters: longer ones are stories, not descriptions
_ARTICLES = tuple(_DATA["articles"])


def _tidy(caption: str) -> str:
    """Return a caption without the final full stop, and in lower case if its first word is an article."""
    caption = " ".join(caption.split()).rstrip(".。 ")
    return caption[0].lower() + caption[1:] if caption.startswith(_ARTICLES) else caption


def read_captions(path: Path) -> dict[str, str]:
    """Return language -> caption from a stamp's text file: English first, then a line `xx.utf8=...` per language. Long
    captions are left out."""
    first, *rest = path.read_text("utf-8", errors="replace").splitlines() or [""]
    captions = {"en": first}
    by_code = {m[1]: m[2] for line in rest if (m := re.match(r"(\w+)\.utf8=(.+)", line))}
    for language in lexicon.LANGUAGES:
        for code in CAPTION_LANGUAGES.get(language, (language,)):
            if language != "en" and language not in captions and by_code.get(code, "").strip():
                captions[language] = by_code[code]
    tidy = {language: _tidy(text) for language, text in captions.items() if text.strip()}
    return {language: text for language, text in tidy.items() if 0 < len(text) <= LONGEST_CAPTION}


def _category(stamp: str) -> str | None:
    for category, (patterns, exclude) in CATEGORIES.items():
        if any(re.fullmatch(p, stamp) for p in patterns) and not (
            exclude and re.search(exclude, stamp)
        ):
            return category
    return None


class Album(Sequence[Stamp]):
    """Stamps in the order of their ids, with subsets by split and category."""

    def __init__(self, stamps: Sequence[Stamp] = ()) -> None:
        self._stamps = tuple(stamps)
        self._subsets: dict[tuple[str, str | None], tuple[Stamp, ...]] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def __getitem__(self, index: int) -> Stamp:  # type: ignore[override]
        return self._stamps[index]

    def __iter__(self) -> Iterator[Stamp]:
        return iter(self._stamps)

    def of(self, split: str, category: str | None = None) -> tuple[Stamp, ...]:
        """Return the stamps of a split, of this category unless it is None."""
        if (split, category) not in self._subsets:
            subset = tuple(
                s for s in self._stamps if s.split == split and category in (None, s.category)
            )
            self._subsets[split, category] = subset
        return self._subsets[split, category]


def load(work: Work) -> Album:
    """Return all stamps of the package, or an empty album if it is unavailable."""
    folder = packages.unpack(STAMPS, work.cache, work.report)
    return Album() if folder is None else read(folder / STAMP_FOLDER)


@cache
def read(folder: Path) -> Album:
    """Return the stamps below a folder, without mirrored copies."""
    stamps = []
    for path in sorted(folder.rglob("*.png")):
        text, id = path.with_suffix(".txt"), path.relative_to(folder).with_suffix("").as_posix()
        if not id.endswith("_mirror"):
            captions = read_captions(text) if text.exists() else {}
            stamps.append(Stamp(id, path, captions, _category(id)))
    return Album(stamps)
