"""Pictures made for training: drawn shapes, scanned digits, stamps and rendered text, composed into small scenes.

>>> scene = Scene(random.Random(0), "train", 0)
>>> picture = sheet((112, 112), scene.paper((220, 30, 30)))
>>> stamp_shape(picture, "star", (20, 20), 60, (220, 30, 30))
>>> png(picture)[:4]
b'\\x89PNG'

Everything is drawn with Pillow from a `random.Random`, so a sample depends on the seed, its split and its number alone. What
the test split shows is unseen: scans (by number), stamps (by id), font files, numbers, and pairs of shape and colour.
"""

import hashlib
import io
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from polyphi.chat import Image as Picture
from polyphi.chat import Message, Part
from polyphi.curate import lexicon, sources
from polyphi.curate.corpus import Work
from polyphi.data.shards import Sample

RGB = tuple[int, int, int]
SIDE = 112  # pixels: one crop of the nano size
PAPERS: tuple[RGB, ...] = (
    (255, 255, 255),
    (246, 244, 236),
    (228, 232, 236),
    (208, 212, 208),
    (250, 236, 220),
    (222, 236, 250),
    (70, 74, 82),
)
"""Backgrounds: pale ones, and one dark."""


# What is held out ------------------------------------------------------------------------------------------------------


def bucket(key: str, buckets: int) -> int:
    """A stable number from 0 to `buckets` - 1 for a key: splits must not move with Python's own hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % buckets


@cache
def pairs(split: str) -> tuple[tuple[str, str], ...]:
    """(shape, colour) pairs of a split. Eight of the 48 are held out: each colour once, each shape once or twice."""
    shapes, colours = list(lexicon.SHAPES), list(lexicon.COLOURS)
    unseen = {(shapes[(2 * i + i // 3) % len(shapes)], colour) for i, colour in enumerate(colours)}
    return tuple((s, c) for s in shapes for c in colours if ((s, c) in unseen) == (split == "test"))


@cache
def numbers(split: str) -> tuple[int, ...]:
    """Numbers from 0 to 999 that a split may show; of those with two and three digits a sixth is held out."""
    return tuple(n for n in range(1000) if (n >= 10 and bucket(f"number {n}", 6) == 0) == (split == "test"))


# Fonts -----------------------------------------------------------------------------------------------------------------

FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralItalic",
    ),
    "test": ("STIXGeneralBol", "DejaVuSerif-Bold", "cmr10", "cmss10", "cmtt10", "cmb10", "Aileron"),
}
"""Font files of each split: those inside matplotlib, and Aileron, Pillow's own."""
ASCII_FONTS = {"cmr10", "cmss10", "cmtt10", "cmb10", "Aileron"}  # they lack accented letters


@cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font by name and size in pixels. Raises `ValueError` for an unknown one."""
    if name == "Aileron":
        return ImageFont.load_default(size)  # type: ignore[return-value]
    path = _font_folder() / f"{name}.ttf"
    if not path.exists():
        raise ValueError(f"no font {name!r} in {path.parent}; expected one of {', '.join(sum(FONTS.values(), ()))}")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def fitting(name: str, text: str, width: float, largest: int) -> ImageFont.FreeTypeFont:
    """The font in the largest size, up to `largest` pixels, in which `text` is at most `width` pixels wide."""
    wide = font(name, 32).getlength(text)
    return font(name, max(7, min(largest, int(32 * width / max(wide, 1)))))


def write(picture: Image.Image, text: str, face: ImageFont.FreeTypeFont, corner: tuple[int, int], ink: RGB) -> None:
    """Render a line of text, the upper left corner of its ink at `corner`."""
    left, top, _, _ = face.getbbox(text)
    ImageDraw.Draw(picture).text((corner[0] - left, corner[1] - top), text, font=face, fill=ink)


def measure(text: str, face: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """(width, height) of a line's ink in pixels."""
    left, top, right, bottom = face.getbbox(text)
    return math.ceil(right - left), math.ceil(bottom - top)


# Canvas and colours ----------------------------------------------------------------------------------------------------


def sheet(size: tuple[int, int], paper: RGB) -> Image.Image:
    """An empty picture of (width, height)."""
    return Image.new("RGB", size, paper)


def png(picture: Image.Image) -> bytes:
    """PNG bytes, compressed lightly: making shards should not wait for zlib."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def distance(a: RGB, b: RGB) -> float:
    """How far two colours are apart, from 0 to 255; green counts most, as to the eye."""
    return 0.3 * abs(a[0] - b[0]) + 0.59 * abs(a[1] - b[1]) + 0.11 * abs(a[2] - b[2])


# Shapes ----------------------------------------------------------------------------------------------------------------


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the square from -1 to 1, y downwards. A circle and a heart are polygons of many corners."""
    turns = [2 * math.pi * i / 64 for i in range(64)]
    if shape == "circle":
        return [(math.cos(t), math.sin(t)) for t in turns]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    if shape == "heart":
        return [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ]
    if shape == "cross":
        a, b = 0.32, 0.95
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(lexicon.SHAPES)}")


@lru_cache(4096)
def shape_mask(shape: str, side: int, turn: int = 0) -> Image.Image:
    """Coverage of a shape of `side` x `side` pixels, turned by `turn` degrees, smooth at its edge."""
    fine, angle = 4, math.radians(turn)
    c, s, r = math.cos(angle), math.sin(angle), side * fine / 2
    mask = Image.new("L", (side * fine, side * fine))
    corners = [(r + 0.96 * r * (x * c - y * s), r + 0.96 * r * (x * s + y * c)) for x, y in _outline(shape)]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)


def stamp_shape(
    picture: Image.Image, shape: str, corner: tuple[int, int], side: int, colour: RGB, turn: int = 0
) -> None:
    """Draw a shape with its upper left corner at `corner`."""
    picture.paste(colour, corner, shape_mask(shape, side, turn))


# Scanned digits --------------------------------------------------------------------------------------------------------

SCANS = "scikit-learn-digits"
TEST_SCANS = 5  # one scan in five is held out; the same hands wrote both parts


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """(scans uint8 [1797 8 8], 255 = ink; labels int [1797]): digits written by hand, from scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.clip(data.images * (255 / 16), 0, 255).astype(np.uint8), data.target


@cache
def scan_numbers(split: str, digit: int) -> tuple[int, ...]:
    """Which scans of a digit belong to a split."""
    return tuple(
        int(i) for i in np.flatnonzero(scans()[1] == digit) if (bucket(f"scan {i}", TEST_SCANS) == 0) == (split == "test")
    )


def scan_mask(number: int, side: int, turn: float = 0.0, strength: float = 1.0) -> Image.Image:
    """A scan as coverage, `side` x `side` pixels, turned by `turn` degrees; `strength` up to 1 is how dark the ink is."""
    mask = Image.fromarray(scans()[0][number]).resize((side, side), Image.Resampling.BICUBIC)
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BILINEAR)
    return mask.point([int(strength * v) for v in range(256)]) if strength < 1 else mask


def stamp_digits(
    picture: Image.Image, numbers: Sequence[int], corner: tuple[int, int], side: int, ink: RGB, rng: random.Random
) -> None:
    """Scans side by side, a little up and down, each turned a little. Together they are `side` x 0.9 a digit wide."""
    strength = rng.uniform(0.75, 1.0)
    for i, number in enumerate(numbers):
        mask = scan_mask(number, side, rng.uniform(-8, 8), strength)
        picture.paste(ink, (corner[0] + round(0.9 * side * i), corner[1] + rng.randint(-2, 2)), mask)


# Stamps ----------------------------------------------------------------------------------------------------------------

STAMPS = "tuxpaint-stamps-default"
STAMP_FOLDER = Path("usr/share/tuxpaint/stamps")
LARGEST = 96  # pixels kept of a stamp's longer side

KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "bird": (("animals/birds/[^/]+", "seasonal/easter/(bluebird|chick)"), "albino_peahen"),
    "insect": (("animals/insects/.+", "seasonal/easter/butterfly"), "slug|Woodlouse|snail|spider|wings"),
    "animal": (("animals/mammals/.+",), "aquatic|toys|bears/cartoon|bats?$"),
    "flower": (("plants/flowers/.+", "seasonal/easter/daffodil"), "appooppanthadi"),
    "fruit": (("food/fruit/.+",), "core|sliced|slice|avocado"),
    "hat": (("clothes/hats/.+", "seasonal/christmas/(hat|santa_hat|.*hat).*", "seasonal/newyears/party_hat"), "crown"),
    "house": (("town/houses/.+",), "cave|tower|lighthouse"),
    "vehicle": (
        ("vehicles/[^/]+", "vehicles/(race|auto|masstransit|emergency|construction)/.+"),
        "wheel|tyre|spoke|sedan_police",
    ),
    "coin": (("symbols/money/(us|euro|canadian|japanese)/?.*",), ""),
    "letter": (("symbols/alphabets/(english|german|spanish)/.+",), ""),
    "hand": (("symbols/alphabets/asl/.+", "symbols/shapes/hand"), ""),
    "sign": (("town/roadsigns/.+",), "stoplight|cone|railroad"),
    "person": (("people/[^/]+", "people/cartoon/.+"), "mermaid|snowman|scarecrow"),
    "ball": (("sports/.*(ball|soccer|rules).*",), "helmet"),
    "tool": (("household/tools/.+",), "cementmixer|toolbox|measuring"),
    "planet": (("space/solarsystem/[^/]+",), "sun|pluto"),
}
"""Kind of thing -> (patterns of stamp ids, what to leave out): kinds that several stamps share, told apart at a glance."""

KIND_WORDS: dict[str, lexicon.Words] = {
    **{kind: lexicon.NOUNS[kind] for kind in ("bird", "flower", "hat", "house", "ball")},
    "insect": dict(en="insect", fr="insecte", de="Insekt", it="insetto", pt="inseto", es="insecto", zh="昆虫", ja="むし"),
    "animal": dict(en="animal", fr="animal", de="Tier", it="animale", pt="animal", es="animal", zh="动物", ja="どうぶつ"),
    "fruit": dict(en="fruit", fr="fruit", de="Frucht", it="frutto", pt="fruta", es="fruta", zh="水果", ja="くだもの"),
    "vehicle": dict(
        en="vehicle", fr="véhicule", de="Fahrzeug", it="veicolo", pt="veículo", es="vehículo", zh="车辆", ja="のりもの"
    ),
    "coin": dict(en="coin", fr="pièce", de="Münze", it="moneta", pt="moeda", es="moneda", zh="硬币", ja="コイン"),
    "letter": dict(en="letter", fr="lettre", de="Buchstabe", it="lettera", pt="letra", es="letra", zh="字母", ja="もじ"),
    "hand": dict(en="hand", fr="main", de="Hand", it="mano", pt="mão", es="mano", zh="手", ja="て"),
    "sign": dict(en="sign", fr="panneau", de="Schild", it="cartello", pt="placa", es="señal", zh="标志", ja="ひょうしき"),
    "person": dict(en="person", fr="personne", de="Person", it="persona", pt="pessoa", es="persona", zh="人", ja="ひと"),
    "tool": dict(en="tool", fr="outil", de="Werkzeug", it="attrezzo", pt="ferramenta", es="herramienta", zh="工具", ja="どうぐ"),
    "planet": dict(en="planet", fr="planète", de="Planet", it="pianeta", pt="planeta", es="planeta", zh="行星", ja="わくせい"),
}
"""Kind -> its word in each language."""


def held_out_stamp(stamp: str) -> bool:
    """Whether a stamp, its caption, its recording and its sound belong to the test split of every corpus: one id in
    eight. `stamp` is the path in the package without its ending. The salt was picked so that every kind has two or more."""
    return bucket(f"stamp 2794 {stamp.removesuffix('_mirror')}", 8) == 0


@dataclass(frozen=True)
class Stamp:
    """A picture on transparent ground. `id` is its path in the package without ".png"; `captions` go by language."""

    id: str
    path: Path
    captions: Mapping[str, str]
    kind: str | None

    @property
    def split(self) -> str:
        return "test" if held_out_stamp(self.id) else "train"

    def cutout(self, side: int) -> Image.Image:
        """The stamp trimmed to what is opaque, its longer side `side` pixels, RGBA."""
        whole = _cutout(self.path)
        scale = side / max(whole.size)
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        return whole.resize(size, Image.Resampling.BILINEAR)

    def paper(self, rng: random.Random) -> RGB:
        """A background on which the stamp can be seen."""
        light = _lightness(self.path)
        seen = [p for p in PAPERS if abs(distance(p, (0, 0, 0)) - light) > 50] or list(PAPERS)
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
    return float((pixels[..., :3] @ np.array([0.3, 0.59, 0.11]) * weights).sum() / max(weights.sum(), 1.0))


CAPTION_LANGUAGES = {"zh": ("zh_CN",), "pt": ("pt_BR", "pt")}
LONGEST_CAPTION = 40  # characters: longer ones tell stories, not what is seen
_ARTICLES = ("A ", "An ", "The ", "Some ", "Un ", "Une ", "Le ", "La ", "L'", "L’", "Les ", "Des ", "Ein ", "Eine ", "Der ",
             "Die ", "Das ", "Una ", "Uno ", "Un'", "Un’", "Il ", "Lo ", "I ", "Gli ", "Um ", "Uma ", "O ", "Os ", "As ", "El ",
             "Los ", "Las ", "Unos ", "Unas ")  # fmt: skip


def _tidy(caption: str) -> str:
    """Without the closing stop, and with a small first letter where it opens with an article."""
    caption = " ".join(caption.split()).rstrip(".。 ")
    return caption[0].lower() + caption[1:] if caption.startswith(_ARTICLES) else caption


def read_captions(path: Path) -> dict[str, str]:
    """Language -> caption, from a stamp's text file: English first, then a line `xx.utf8=...` per language. Long ones
    are left out."""
    first, *rest = path.read_text("utf-8", errors="replace").splitlines() or [""]
    found = {"en": first}
    by_code = dict(m.groups() for line in rest if (m := re.match(r"(\w+)\.utf8=(.+)", line)))
    for language in lexicon.LANGUAGES:
        for code in CAPTION_LANGUAGES.get(language, (language,)):
            if language != "en" and language not in found and by_code.get(code, "").strip():
                found[language] = by_code[code]
    tidy = {language: _tidy(text) for language, text in found.items() if text.strip()}
    return {language: text for language, text in tidy.items() if 0 < len(text) <= LONGEST_CAPTION}


def _kind(stamp: str) -> str | None:
    for kind, (patterns, without) in KINDS.items():
        if any(re.fullmatch(p, stamp) for p in patterns) and not (without and re.search(without, stamp)):
            return kind
    return None


def load_stamps(work: Work) -> list[Stamp]:
    """Every stamp of the Tux Paint package, or none, told in one line, where the package can't be had."""
    folder = sources.unpack(STAMPS, work.cache, work.tell)
    return [] if folder is None else stamps_in(folder / STAMP_FOLDER)


@cache
def stamps_in(folder: Path) -> list[Stamp]:
    """The stamps below a folder, in the order of their ids. A mirrored copy is left out."""
    stamps = []
    for path in sorted(folder.rglob("*.png")):
        text, id = path.with_suffix(".txt"), path.relative_to(folder).with_suffix("").as_posix()
        if not id.endswith("_mirror"):
            stamps.append(Stamp(id, path, read_captions(text) if text.exists() else {}, _kind(id)))
    return stamps


# Scenes ----------------------------------------------------------------------------------------------------------------

OTHER_LANGUAGES = 0.2  # share of questions asked in one of the seven other languages
WIDE = 0.08  # share of pictures larger than one crop


@dataclass(frozen=True)
class Scene:
    """What one sample is drawn with: its dice, its split, its number within its task, and the stamps at hand."""

    rng: random.Random
    split: str
    index: int
    stamps: Sequence[Stamp] = ()

    def answer(self, answers: Sequence[Any], every: int = 1) -> Any:
        """One of the answers: by chance in training; in the test split in turn, the next one after `every` samples, so
        that answers are balanced."""
        return answers[self.index // every % len(answers)] if self.split == "test" else self.rng.choice(answers)

    def language(self, share: float = OTHER_LANGUAGES) -> str:
        others = [language for language in lexicon.LANGUAGES if language != "en"]
        return self.rng.choice(others) if self.rng.random() < share else "en"

    def size(self, share: float = WIDE) -> tuple[int, int]:
        """(width, height): mostly one crop, now and then two or four."""
        return self.rng.choice([(2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE)]) if self.rng.random() < share else (SIDE, SIDE)

    def paper(self, *colours: RGB) -> RGB:
        """A background on which all these colours can be seen."""
        seen = [p for p in PAPERS if all(distance(p, c) > 40 for c in colours)]
        return self.rng.choice(seen or [max(PAPERS, key=lambda p: min(distance(p, c) for c in colours))])

    def ink(self, paper: RGB) -> RGB:
        """A dark or bright colour that can be read on the paper."""
        while True:
            ink = tuple(self.rng.randrange(256) for _ in range(3))
            if distance(ink, paper) > 90:
                return ink

    def tint(self, colour: str) -> RGB:
        """A colour of the lexicon, a little off."""
        r, g, b = (min(255, max(0, v + self.rng.randint(-12, 12))) for v in lexicon.COLOUR_RGB[colour])
        return r, g, b

    def turn(self) -> int:
        return self.rng.choice((-12, -6, 0, 0, 6, 12))

    def pair(self) -> tuple[str, str]:
        """A (shape, colour) of the split."""
        return self.rng.choice(pairs(self.split))

    def font(self, text: str) -> str:
        """A font of the split that has the letters of `text`."""
        plain = text.isascii()
        return self.rng.choice([f for f in FONTS[self.split] if plain or f not in ASCII_FONTS])

    def scan(self, digit: int) -> int:
        return self.rng.choice(scan_numbers(self.split, digit))

    def stamp(self, kind: str | None = None) -> Stamp:
        """A stamp of the split, of a kind if one is named."""
        return self.rng.choice(_stamps_of(tuple(self.stamps), self.split, kind))

    def corner(self, size: tuple[int, int], item: tuple[int, int], margin: int = 2) -> tuple[int, int]:
        """Where to put the upper left corner of an item of (width, height) so that it lies inside."""
        x, y = (self.rng.randint(min(margin, max(0, s - i)), max(margin, s - i - margin)) for s, i in zip(size, item, strict=True))
        return x, y

    def scatter(self, count: int, side: int, size: tuple[int, int] = (SIDE, SIDE)) -> list[tuple[int, int]]:
        """Corners for `count` items of `side` pixels that don't overlap: each in its own cell, moved about within it."""
        cols, rows = max(1, size[0] // (side + 3)), max(1, size[1] // (side + 3))
        if cols * rows < count:
            raise ValueError(f"{count} items of {side} pixels don't fit a picture of {size}; expected at most {cols * rows}")
        wide, high = size[0] / cols, size[1] / rows
        cells = self.rng.sample([(c, r) for r in range(rows) for c in range(cols)], count)
        return [
            (int(c * wide + self.rng.uniform(1, wide - side - 1)), int(r * high + self.rng.uniform(1, high - side - 1)))
            for c, r in cells
        ]


@lru_cache(256)
def _stamps_of(stamps: tuple[Stamp, ...], split: str, kind: str | None) -> list[Stamp]:
    found = [s for s in stamps if s.split == split and (kind is None or s.kind == kind)]
    assert found, f"no {split} stamps of kind {kind}"
    return found


# Samples ---------------------------------------------------------------------------------------------------------------

LICENCES = {SCANS: "BSD-3-Clause", STAMPS: "GPL-2.0-or-later", "polyphi": "MIT"}
"""Licence by source. A picture that shows a scan or a stamp has that source, others are our own renderings."""


@dataclass(frozen=True)
class Made:
    """What a maker hands back: the conversation, where its pictures come from, its language, and what else to note."""

    messages: tuple[Message, ...]
    source: str = "polyphi"
    language: str = "en"
    meta: Mapping[str, Any] = field(default_factory=dict)


def strictest(found: Sequence[str]) -> str:
    """The source to name for something made of several: stamps before scans before our own renderings."""
    return next((source for source in (STAMPS, SCANS) if source in found), "polyphi")


def asked(
    pictures: Image.Image | Sequence[Image.Image],
    question: str,
    answer: object,
    source: str = "polyphi",
    language: str = "en",
    **meta: Any,
) -> Made:
    """A question about pictures, and its answer."""
    shown = [pictures] if isinstance(pictures, Image.Image) else pictures
    parts: list[Part | str] = [Picture(png(p)) for p in shown]
    return Made((Message.user(*parts, question), Message.assistant(str(answer))), source, language, meta)


Maker = Callable[[Scene], Made]


def samples(
    corpus: str,
    work: Work,
    makers: Mapping[str, tuple[float, Maker]],
    stamps: Sequence[Stamp] = (),
) -> Iterator[tuple[str, Sample]]:
    """(split, sample) of every split of `work`: makers are drawn by weight in training, and take turns in the test split.

    A maker of weight 0 is for the test split alone. The sample's `meta` names its task, language and number.
    """
    names, weights = list(makers), [weight for weight, _ in makers.values()]
    for split, rows in work.rows.items():
        for i in range(rows):
            rng = random.Random(f"{work.seed} {corpus} {split} {i}")
            task = names[i % len(names)] if split == "test" else rng.choices(names, weights)[0]
            made = makers[task][1](Scene(rng, split, i // len(names), stamps))
            meta = {"task": task, "language": made.language, **made.meta}
            yield split, Sample(f"{corpus}-{split}-{i:06d}", made.messages, made.source, LICENCES[made.source], meta)
