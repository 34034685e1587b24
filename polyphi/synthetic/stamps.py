"""Tux Paint's stamps: some 950 small pictures on transparent ground, with captions in eight languages.

>>> album = load(work)                                  # empty, told in one line, where the package can't be had
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

from polyphi.curate import sources
from polyphi.curate.corpus import Work
from polyphi.synthetic.images import PAPERS, RGB, bucket, contrast
from polyphi.text import lexicon

STAMPS = "tuxpaint-stamps-default"
STAMP_FOLDER = Path("usr/share/tuxpaint/stamps")
LARGEST = 96  # pixels kept of a stamp's longer side

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
KINDS: dict[str, tuple[list[str], str]] = {
    kind: (patterns, without) for kind, (patterns, without) in _DATA["kinds"].items()
}
"""Kind of thing -> (patterns of stamp ids, what to leave out): what several stamps share, told apart at a glance."""
KIND_WORDS: dict[str, lexicon.Words] = {
    **{kind: lexicon.NOUNS[kind] for kind in ("bird", "flower", "hat", "house", "ball")},
    **_DATA["kind_words"],
}
"""Kind -> its word in each language."""


def held_out(stamp: str) -> bool:
    """Whether a stamp, its caption, its recording and its sound belong to the test split of every corpus: one id in
    eight. `stamp` is its path in the package without the ending. With this salt every kind has two or more."""
    return bucket(f"stamp 2794 {stamp.removesuffix('_mirror')}", 8) == 0


@dataclass(frozen=True)
class Stamp:
    """A picture on transparent ground. `id` is its path in the package without ".png"; `captions` go by language."""

    id: str
    path: Path
    captions: Mapping[str, str] = field(compare=False)
    kind: str | None

    @property
    def split(self) -> str:
        return "test" if held_out(self.id) else "train"

    def cutout(self, side: int) -> Image.Image:
        """The stamp trimmed to what is opaque, its longer side `side` pixels, RGBA."""
        whole = _cutout(self.path)
        scale = side / max(whole.size)
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        return whole.resize(size, Image.Resampling.BILINEAR)

    def paper(self, rng: random.Random) -> RGB:
        """A background on which the stamp can be seen."""
        light = _lightness(self.path)
        seen = [p for p in PAPERS if abs(contrast(p, (0, 0, 0)) - light) > 50] or list(PAPERS)
        return rng.choice(seen)


@cache
def _cutout(path: Path) -> Image.Image:
    with Image.open(path) as file:
        whole = file.convert("RGBA")
    whole = whole.crop(whole.getchannel("A").point([0] * 24 + [255] * 232).getbbox())
    whole.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return whole


@cache
def _lightness(path: Path) -> float:
    """Mean brightness of the opaque part, 0 to 255."""
    pixels = np.asarray(_cutout(path), np.float32)
    weights = pixels[..., 3]
    return float(
        (pixels[..., :3] @ np.array([0.3, 0.59, 0.11]) * weights).sum() / max(weights.sum(), 1.0)
    )


CAPTION_LANGUAGES = {"zh": ("zh_CN",), "pt": ("pt_BR", "pt")}
LONGEST_CAPTION = 40  # characters: longer ones tell stories, not what is seen
_ARTICLES = tuple(_DATA["articles"])


def _tidy(caption: str) -> str:
    """Without the closing stop, and with a small first letter where it opens with an article."""
    caption = " ".join(caption.split()).rstrip(".。 ")
    return caption[0].lower() + caption[1:] if caption.startswith(_ARTICLES) else caption


def read_captions(path: Path) -> dict[str, str]:
    """Language -> caption, from a stamp's text file: English first, then a line `xx.utf8=...` per language. Long ones
    are left out."""
    first, *rest = path.read_text("utf-8", errors="replace").splitlines() or [""]
    found = {"en": first}
    by_code = {m[1]: m[2] for line in rest if (m := re.match(r"(\w+)\.utf8=(.+)", line))}
    for language in lexicon.LANGUAGES:
        for code in CAPTION_LANGUAGES.get(language, (language,)):
            if language != "en" and language not in found and by_code.get(code, "").strip():
                found[language] = by_code[code]
    tidy = {language: _tidy(text) for language, text in found.items() if text.strip()}
    return {language: text for language, text in tidy.items() if 0 < len(text) <= LONGEST_CAPTION}


def _kind(stamp: str) -> str | None:
    for kind, (patterns, without) in KINDS.items():
        if any(re.fullmatch(p, stamp) for p in patterns) and not (
            without and re.search(without, stamp)
        ):
            return kind
    return None


class Album(Sequence[Stamp]):
    """Stamps in the order of their ids, also by split and kind."""

    def __init__(self, stamps: Sequence[Stamp] = ()) -> None:
        self._stamps = tuple(stamps)
        self._found: dict[tuple[str, str | None], tuple[Stamp, ...]] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def __getitem__(self, index: int) -> Stamp:  # type: ignore[override]
        return self._stamps[index]

    def __iter__(self) -> Iterator[Stamp]:
        return iter(self._stamps)

    def of(self, split: str, kind: str | None = None) -> tuple[Stamp, ...]:
        """The stamps of a split, of a kind if one is named."""
        if (split, kind) not in self._found:
            found = tuple(
                s for s in self._stamps if s.split == split and (kind is None or s.kind == kind)
            )
            self._found[split, kind] = found
        return self._found[split, kind]


def load(work: Work) -> Album:
    """Every stamp of the package, or none where it can't be had."""
    folder = sources.unpack(STAMPS, work.cache, work.tell)
    return Album() if folder is None else read(folder / STAMP_FOLDER)


@cache
def read(folder: Path) -> Album:
    """The stamps below a folder; a mirrored copy is left out."""
    found = []
    for path in sorted(folder.rglob("*.png")):
        text, id = path.with_suffix(".txt"), path.relative_to(folder).with_suffix("").as_posix()
        if not id.endswith("_mirror"):
            found.append(Stamp(id, path, read_captions(text) if text.exists() else {}, _kind(id)))
    return Album(found)
