"""Pictures with short captions: shapes, scanned digits, numbers, words and stamps, the last in eight languages.

The image-text pairs of `vision_0_encoder` (contrastive) and `vision_1_align`. Rendered scenes are captioned in
English; a stamp has its own captions, written by volunteers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from PIL import Image

from polyphi.corpora.image_qa import (
    PLACES,
    at,
    draw_digits,
    draw_stamp,
    draw_text,
    pick_number,
    row_size,
)
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.data.shards import Sample
from polyphi.synthetic import images, stamps
from polyphi.synthetic.images import PAIRS, SCANS, SIDE, sheet
from polyphi.synthetic.instructions import several
from polyphi.synthetic.scenes import Made, Maker, Makers, Scene, asked, fresh, samples
from polyphi.synthetic.stamps import KIND_WORDS, KINDS, STAMPS, Album
from polyphi.text.lexicon import COLOUR_RGB, COLOURS, SHAPES, lexicon

PROMPTS: dict[str, tuple[str, ...]] = {
    "en": ("Describe the picture.", "What does the picture show?"),
    "fr": ("Décris l'image.",),
    "de": ("Beschreibe das Bild.",),
    "it": ("Descrivi l'immagine.",),
    "pt": ("Descreva a imagem.",),
    "es": ("Describe la imagen.",),
    "zh": ("描述这张图片。",),
    "ja": ("この えは なに ですか。",),
}
"""Language -> ways to ask for a caption."""


ALONE = 0.4
"""Share of the pictures of groups that show one large shape in training: of each size an eye has to see some."""
ONE_CROP = 0.8
"""Share of the rows of characters that are drawn into one crop in training: `vision_0_encoder` is given no more of a
picture, and single large digits don't teach it to read small ones."""


@dataclass(frozen=True)
class Captioned:
    """A picture, what it shows, and where it comes from."""

    picture: Image.Image
    caption: str
    source: str = "polyphi"
    language: str = "en"
    meta: Mapping[str, str] = field(default_factory=dict)


def a(noun: str) -> str:
    """A noun with its English article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def shapes(scene: Scene) -> Captioned:
    """One to four shapes alike, a shape on a side of the picture, or two groups; in training, one in eight
    is captioned by its name or its colour alone, in another language."""
    if scene.split == "train" and scene.rng.random() < 1 / 8:
        return one_word(scene)
    form = scene.answer(("alike", "alike", "place", "two"))
    shape, colour = scene.pair()
    if form == "place":
        place, side = scene.answer(list(PLACES), every=4), scene.rng.randint(28, 44)
        picture = sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour]))
        scene.shape(picture, shape, colour, at(scene, place, side), side)
        return Captioned(
            picture,
            f"{a(f'{colour} {shape}')} {'on the' if place in ('left', 'right') else 'at the'} {place}",
        )
    alone = scene.split == "train" and scene.rng.random() < ALONE
    groups = [(1 if alone else scene.answer(range(1, 5), every=4), colour, shape)]
    if form == "two" and not alone:
        other = scene.rng.choice([pair for pair in PAIRS if pair[0] != shape])
        groups = [
            (scene.rng.randint(1, 2), colour, shape),
            (scene.rng.randint(1, 2), other[1], other[0]),
        ]
    total = sum(count for count, _, _ in groups)
    side = scene.rng.randint(36, 92) if total == 1 else scene.rng.randint(24, 34)
    picture = sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in groups)))
    things = [(c, s) for count, c, s in groups for _ in range(count)]
    for (c, s), corner in zip(things, scene.scatter(total, side), strict=True):
        scene.shape(picture, s, c, corner, side)
    return Captioned(picture, " and ".join(several(*group) for group in groups))


READ = (*["digit"] * 2, *["digits"] * 4, *["number"] * 4, "word")
"""What pictures of writing show in training, each entry equally often."""


def _size(scene: Scene, characters: int) -> tuple[int, int]:
    """(width, height) of a picture of a row of characters."""
    squeezed = scene.split == "train" and scene.rng.random() < ONE_CROP
    return (SIDE, SIDE) if squeezed else row_size(scene, characters)


def text(scene: Scene) -> Captioned:
    """Scanned digits, a rendered number, or a rendered word."""
    forms = ("digit", "digit", "digits", "digits", "number", "word")
    form = scene.rng.choice(READ) if scene.split == "train" else scene.answer(forms)
    if form == "digit":
        value = scene.answer(range(10), every=4)
        paper, side = scene.paper(), scene.rng.randint(76, 104)
        picture = sheet((SIDE, SIDE), paper)
        corner = scene.corner(picture.size, (side, side))
        images.stamp_digits(
            picture, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng
        )
        return Captioned(picture, f"the digit {value}", SCANS)
    if form == "digits":
        values = [scene.rng.randrange(10) for _ in range(scene.rng.randint(2, 4))]
        return Captioned(
            draw_digits(scene, values, _size(scene, len(values))),
            f"the digits {''.join(map(str, values))}",
            SCANS,
        )
    if form == "number":
        value = pick_number(scene)
        return Captioned(
            draw_text(scene, str(value), _size(scene, len(str(value))), 66)[0],
            f"the number {value}",
        )
    word = scene.answer(sorted(lexicon()), every=4)
    return Captioned(draw_text(scene, word, _size(scene, len(word)), 54)[0], f"the word {word}")


def a_stamp(scene: Scene) -> Captioned:
    """A stamp with its caption in one of eight languages, half of the time in English; in training one in
    four has its kind for a caption."""
    language = scene.answer(scene.languages) if scene.split == "test" else scene.language(0.5)
    if scene.split == "train" and scene.rng.random() < 0.25:
        kind = scene.rng.choice(list(KINDS))
        stamp = scene.stamp(kind)
        caption = a(kind) if language == "en" else KIND_WORDS[kind][language]
    else:
        stamp = scene.rng.choice([s for s in scene.album.of(scene.split) if language in s.captions])
        caption = stamp.captions[language]
    picture = draw_stamp(scene, stamp, (SIDE, SIDE))
    return Captioned(picture, caption, STAMPS, language, {"stamp": stamp.id})


def one_word(scene: Scene) -> Captioned:
    """A shape, captioned with its name or its colour in another language."""
    language = scene.language(1.0)
    shape, colour = scene.pair()
    side = scene.rng.randint(50, 92)
    picture = sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour]))
    corner = scene.corner(picture.size, (side, side))
    scene.shape(picture, shape, colour, corner, side)
    return Captioned(
        picture, scene.rng.choice((SHAPES[shape], COLOURS[colour]))[language], "polyphi", language
    )


def described(draw: Callable[[Scene], Captioned]) -> Maker:
    """A maker of samples: the picture, a request for its caption, the caption."""

    def make(scene: Scene) -> Made:
        c = draw(scene)
        return asked(
            c.picture,
            scene.rng.choice(PROMPTS[c.language]),
            c.caption,
            c.source,
            c.language,
            **c.meta,
        )

    return make


MAKERS = {
    "caption_shapes": (40, described(shapes)),
    "caption_text": (56, described(text)),
    "caption_stamp": (4, described(a_stamp)),
}
"""Task -> (share of the training set, maker)."""


def makers_with(album: Album) -> Makers:
    """All makers, or without stamps those that need none."""
    return {task: made for task, made in MAKERS.items() if album or task != "caption_stamp"}


def pictures(work: Work) -> Iterator[tuple[str, Sample]]:
    album, tests = stamps.load(work), ("caption_shapes", "caption_stamp")
    return samples("captions", work, makers_with(album), album, tests)


def fresh_pictures(work: Work) -> Callable[[int], Sample]:
    album = stamps.load(work)
    return fresh("captions", work, makers_with(album), album)


# By bytes: hashing so many pictures would cost more than drawing them.
corpus = Corpus(
    "captions",
    build=pictures,
    steps=against("captions", ways=("same bytes",)),
    fresh=fresh_pictures,
)
