"""Images with short captions: shapes, scanned digits, numbers, words and stamps, the last in eight languages.

The image-text pairs of `vision_0_encoder` (contrastive) and `vision_1_align`. Captions of rendered scenes are in
English; those of stamps were written by volunteers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from string import ascii_lowercase

from PIL import Image

from polyphi.data.shards import Sample
from polyphi_recipe.corpora.image_qa import (
    LATIN,
    SIDES,
    corner_near,
    draw_digits,
    draw_name,
    draw_stamp,
    draw_text,
    pick_number,
    row_size,
)
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import safety
from polyphi_recipe.synthetic import images, stamps
from polyphi_recipe.synthetic.described_scenes import shape_phrase, with_article
from polyphi_recipe.synthetic.images import PAIRS, SCANS, SIDE
from polyphi_recipe.synthetic.scenes import (
    Maker,
    Makers,
    Scene,
    SceneSample,
    fresh,
    image_question,
    samples,
)
from polyphi_recipe.synthetic.stamps import CATEGORIES, CATEGORY_WORDS, STAMPS, Album
from polyphi_recipe.text.lexicon import COLOUR_RGB, COLOURS, SHAPES, lexicon

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
"""Language -> prompts for a caption."""


SINGLE_SHARE = 0.4
"""Share of images with one large shape among those of groups in training, so that the encoder sees every size."""
ONE_CROP_SHARE = 0.8
"""Share of the rows of characters that are drawn into one crop in training: `vision_0_encoder` reads one crop per
image, and single large digits don't train it to read small ones."""


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its caption, source and language."""

    image: Image.Image
    caption: str
    source: str = "polyphi"
    language: str = "en"
    meta: Mapping[str, str] = field(default_factory=dict)


def shapes(scene: Scene) -> CaptionedImage:
    """Return an image of one to four equal shapes, a shape at a side, or two groups; in training, one caption in eight
    is only the name or the colour of a shape, in another language."""
    if scene.split == "train" and scene.rng.random() < 1 / 8:
        return one_word(scene)
    form = scene.answer(("alike", "alike", "place", "two"))
    shape, colour = scene.pair()
    if form == "place":
        where, side = scene.answer(list(SIDES), every=4), scene.rng.randint(28, 44)
        image = scene.sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour]))
        scene.shape(image, shape, colour, corner_near(scene, where, side), side)
        return CaptionedImage(
            image,
            f"{with_article(f'{colour} {shape}')} {'on the' if where in ('left', 'right') else 'at the'} {where}",
        )
    single = scene.split == "train" and scene.rng.random() < SINGLE_SHARE
    groups = [(1 if single else scene.answer(range(1, 5), every=4), colour, shape)]
    if form == "two" and not single:
        other = scene.rng.choice([pair for pair in PAIRS if pair[0] != shape])
        groups = [
            (scene.rng.randint(1, 2), colour, shape),
            (scene.rng.randint(1, 2), other[1], other[0]),
        ]
    total = sum(count for count, _, _ in groups)
    side = scene.rng.randint(36, 92) if total == 1 else scene.rng.randint(24, 34)
    image = scene.sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in groups)))
    shape_list = [(c, s) for count, c, s in groups for _ in range(count)]
    for (c, s), corner in zip(shape_list, scene.scatter(total, side), strict=True):
        scene.shape(image, s, c, corner, side)
    return CaptionedImage(image, " and ".join(shape_phrase(*group) for group in groups))


TEXT_FORMS = (*["digit"] * 2, *["digits"] * 5, *["number"] * 5, *["word"] * 2, *["letters"] * 2)
"""Contents of images with text in training, each entry equally often. Random letters teach every letter at every place,
which words don't."""


def _size(scene: Scene, characters: int) -> tuple[int, int]:
    """Return (width, height) of an image of a row of characters."""
    one_crop = scene.split == "train" and scene.rng.random() < ONE_CROP_SHARE
    return (SIDE, SIDE) if one_crop else row_size(scene, characters)


def text(scene: Scene) -> CaptionedImage:
    """Return an image of scanned digits, a rendered number, letters, a word, or the thing of a request."""
    forms = ("digit", "digit", "digits", "digits", "number", "word")
    form = scene.rng.choice(TEXT_FORMS) if scene.split == "train" else scene.answer(forms)
    if form == "digit":
        value = scene.answer(range(10), every=4)
        paper, side = scene.paper(), scene.rng.randint(76, 104)
        image = scene.sheet((SIDE, SIDE), paper)
        corner = scene.corner((SIDE, SIDE), (side, side))
        images.stamp_digits(
            image, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng
        )
        return CaptionedImage(image, f"the digit {value}", SCANS)
    if form == "digits":
        values = [scene.rng.randrange(10) for _ in range(scene.rng.randint(2, 4))]
        return CaptionedImage(
            draw_digits(scene, values, _size(scene, len(values))),
            f"the digits {''.join(map(str, values))}",
            SCANS,
        )
    if form == "number":
        value = pick_number(scene)
        return CaptionedImage(
            draw_text(scene, str(value), _size(scene, len(str(value))), 66)[0],
            f"the number {value}",
        )
    if form == "letters":
        letters = "".join(scene.rng.choices(ascii_lowercase, k=scene.rng.randint(2, 5)))
        image = draw_text(scene, letters, _size(scene, len(letters)), 54)[0]
        return CaptionedImage(image, f"the letters {' '.join(letters)}")
    if scene.split == "train" and scene.rng.random() < 1 / 3:
        thing = scene.rng.choice(_things(scene.languages))
        return CaptionedImage(draw_name(scene, thing)[0], f"the words {thing}")
    word = scene.answer(sorted(lexicon()), every=4)
    return CaptionedImage(
        draw_text(scene, word, _size(scene, len(word)), 54)[0], f"the word {word}"
    )


@cache
def _things(languages: tuple[str, ...]) -> list[str]:
    """Return the things of all requests in these languages, those with Latin script: what pictured requests show."""
    return [
        thing for language in LATIN if language in languages for thing in safety.things(language)
    ]


def captioned_stamp(scene: Scene) -> CaptionedImage:
    """Return a stamp with its caption in one of eight languages, half of the time in English; in training one caption
    in four is the stamp's category."""
    language = scene.answer(scene.languages) if scene.split == "test" else scene.language(0.5)
    if scene.split == "train" and scene.rng.random() < 0.25:
        category = scene.rng.choice(list(CATEGORIES))
        stamp = scene.stamp(category)
        caption = with_article(category) if language == "en" else CATEGORY_WORDS[category][language]
    else:
        stamp = scene.rng.choice([s for s in scene.album.of(scene.split) if language in s.captions])
        caption = stamp.captions[language]
    image = draw_stamp(scene, stamp, (SIDE, SIDE))
    return CaptionedImage(image, caption, STAMPS, language, {"stamp": stamp.id})


def one_word(scene: Scene) -> CaptionedImage:
    """Return a shape whose caption is its name or its colour in another language."""
    language = scene.language(1.0)
    shape, colour = scene.pair()
    side = scene.rng.randint(50, 92)
    image = scene.sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour]))
    corner = scene.corner((SIDE, SIDE), (side, side))
    scene.shape(image, shape, colour, corner, side)
    return CaptionedImage(
        image, scene.rng.choice((SHAPES[shape], COLOURS[colour]))[language], "polyphi", language
    )


def caption_maker(draw: Callable[[Scene], CaptionedImage]) -> Maker:
    """Return a maker of samples: the image, a prompt for its caption, the caption."""

    def make(scene: Scene) -> SceneSample:
        captioned = draw(scene)
        return image_question(
            captioned.image,
            scene.rng.choice(PROMPTS[captioned.language]),
            captioned.caption,
            captioned.source,
            captioned.language,
            **captioned.meta,
        )

    return make


MAKERS = {
    "caption_shapes": (40, caption_maker(shapes)),
    "caption_text": (56, caption_maker(text)),
    "caption_stamp": (4, caption_maker(captioned_stamp)),
}
"""Task -> (share of the training set, maker)."""


def makers_with(album: Album) -> Makers:
    """Return all makers, or, without stamps, those that need none."""
    return {task: maker for task, maker in MAKERS.items() if album or task != "caption_stamp"}


def caption_samples(work: Work) -> Iterator[tuple[str, Sample]]:
    album, tests = stamps.load(work), ("caption_shapes", "caption_stamp")
    return samples("captions", work, makers_with(album), album, tests)


def fresh_captions(work: Work) -> Callable[[int], Sample]:
    album = stamps.load(work)
    return fresh("captions", work, makers_with(album), album)


# Compare bytes: perceptual hashes of so many images would cost more than drawing them.
corpus = Corpus(
    "captions",
    build=caption_samples,
    steps=against("captions", ways=("same bytes",)),
    fresh=fresh_captions,
)
