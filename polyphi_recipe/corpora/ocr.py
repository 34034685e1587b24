"""OCR: rendered words of six languages, numbers, short lines, strings of scanned digits; pages of help text, and photos
of such pages.

Held out for the test split: fonts, numbers, scans and help pages. Words are from the closed lexicon. Chinese and
Japanese are not rendered, because no Python package brings their fonts. For your PDFs see raw/pdf_pages.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from polyphi.data.shards import Sample
from polyphi_recipe.corpora.image_qa import LATIN, draw_digits, draw_text, pick_number
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.photos import photo
from polyphi_recipe.raw.real_text import help_pages, in_split
from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.images import SCANS, SIDE
from polyphi_recipe.synthetic.pages import set_page
from polyphi_recipe.synthetic.scenes import (
    Makers,
    Scene,
    SceneSample,
    fresh,
    image_question,
    samples,
)
from polyphi_recipe.text.lexicon import lexicon

PROMPTS = ("Read the text.", "What is written here?")
FONT_CHARACTERS = re.compile("[ -~À-ÖØ-öø-ÿŒœ]+")
"""Characters that every available font has (except the ASCII ones)."""
WORD_RANGE = (3, 7)
"""Minimum and maximum number of words on a page of one crop; a wide page has twice as many."""
WORDS_PER_CROP = 60
LINE_HEIGHTS = (14, 40)
"""Words per crop, at most, and minimum and maximum height of a line in pixels, of a page of large crops."""

MAX_LETTERS = 10
"""Maximum length of a word that is legible when it fills the width of a crop."""

Paragraphs = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> language -> paragraphs; a language without a package has none."""


def word(scene: Scene) -> SceneSample:
    """Return a question for a word; half of the words are English."""
    entry = scene.answer(sorted(lexicon()))
    language = "en" if scene.rng.random() < 0.5 else scene.rng.choice(LATIN[1:])
    text = lexicon()[entry][language]
    image, font = draw_text(scene, text, scene.size(), 36)
    return image_question(
        image, scene.rng.choice(PROMPTS), text, "polyphi", language, font=font, layout="line"
    )


def number(scene: Scene) -> SceneSample:
    """Return a question for a number of one to three digits."""
    value = pick_number(scene)
    image, font = draw_text(scene, str(value), scene.size(), 56)
    return image_question(image, scene.rng.choice(PROMPTS), value, font=font, layout="line")


def line(scene: Scene) -> SceneSample:
    """Return a question for two or three words and numbers, in lines or side by side in a wide image; the answer joins
    them with spaces."""
    pieces = []
    for i in range(2 + (scene.rng.random() < 0.3)):
        pieces.append(
            str(pick_number(scene))
            if i and scene.rng.random() < 0.4
            else scene.rng.choice(sorted(lexicon()))
        )
    text, paper = " ".join(pieces), scene.paper()
    font, ink = scene.font(text), scene.ink(paper)
    if len(pieces) == 2 and scene.rng.random() < 0.4:
        size = (2 * SIDE, SIDE)
        face = images.fitting(font, text, size[0] - 12, scene.rng.randint(20, 30))
        image = scene.sheet(size, paper)
        images.write(
            image, text, face, scene.corner(size, images.measure(text, face), margin=3), ink
        )
    else:
        image = scene.sheet((SIDE, SIDE), paper)
        longest = max(pieces, key=len)
        face = images.fitting(font, longest, SIDE - 14, scene.rng.randint(20, 26))
        step = (SIDE - 8) // len(pieces)
        for i, piece in enumerate(pieces):
            wide, high = images.measure(piece, face)
            x, y = (
                scene.rng.randint(4, max(4, SIDE - wide - 4)),
                4 + i * step + scene.rng.randint(0, max(0, step - high - 2)),
            )
            images.write(image, piece, face, (x, y), ink)
    return image_question(
        image,
        scene.rng.choice(PROMPTS),
        text,
        font=font,
        pieces=len(pieces),
        layout="line",
    )


def scans(scene: Scene) -> SceneSample:
    """Return a question for one to four scanned digits in a row; the answer is a string of digits."""
    values = [scene.rng.randrange(10) for _ in range(scene.answer((1, 2, 3, 4)))]
    image = draw_digits(scene, values, scene.size())
    text = "".join(map(str, values))
    return image_question(
        image, scene.rng.choice(PROMPTS), text, SCANS, length=len(values), layout="line"
    )


def page(paragraphs: Paragraphs, scene: Scene) -> SceneSample:
    """Return a question for a typeset page: the beginning of a help paragraph, or words of the lexicon without one."""
    return _page(paragraphs, scene, photographed=False)


def photographed(paragraphs: Paragraphs, scene: Scene) -> SceneSample:
    """Return a question for a photo of a typeset page, with a text as in `page`."""
    return _page(paragraphs, scene, photographed=True)


def _page(paragraphs: Paragraphs, scene: Scene, photographed: bool) -> SceneSample:
    language = "en" if scene.rng.random() < 0.5 else scene.rng.choice(LATIN[1:])
    candidates = paragraphs[scene.split][language]
    if candidates:
        source, words = LIBREOFFICE[language], scene.rng.choice(candidates).split()
    else:
        short = [w for entry in lexicon().values() if len(w := entry[language]) <= MAX_LETTERS]
        source, words = "polyphi", scene.rng.sample(short, 2 * WORD_RANGE[1])
    if scene.pixels is None:
        size = (2 * SIDE, SIDE) if scene.rng.random() < 0.25 else (SIDE, SIDE)
        count = scene.rng.randint(*WORD_RANGE) * size[0] // SIDE
        image, text, font = set_page(" ".join(words[:count]), scene, size)
    else:
        count = round(WORDS_PER_CROP * scene.crops())
        more = scene.rng.sample(candidates or short, min(count, len(candidates or short)))
        words += [w for text in more if FONT_CHARACTERS.fullmatch(text) for w in text.split()]
        image, text, font = set_page(
            " ".join(words[:count]), scene, scene.pixels, heights=LINE_HEIGHTS
        )
    rendered = photo(image, scene.rng) if photographed else image
    return image_question(
        rendered, scene.rng.choice(PROMPTS), text, source, language, font=font, layout="page"
    )


def paragraphs(work: Work) -> Paragraphs:
    """Return the paragraphs of LibreOffice's help that are fit for a page, by split and language, without duplicates;
    the test split has none of the training split."""
    by_split: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for language in LATIN:
        pages = help_pages(language, work)
        for split, by_language in by_split.items():
            paths = (path for path in sorted(pages) if in_split(split, path, percent=5))
            texts = (text for path in paths for _, text in pages[path].paragraphs if _fits(text))
            by_language[language] = list(dict.fromkeys(texts))
        training = set(by_split["train"][language])
        by_split["test"][language] = [
            text for text in by_split["test"][language] if text not in training
        ]
    return by_split


def _fits(text: str) -> bool:
    """Return whether the first words of a text are fit for a page."""
    words = text.split()
    return len(words) >= WORD_RANGE[0] and all(
        len(word) <= MAX_LETTERS and FONT_CHARACTERS.fullmatch(word)
        for word in words[: 2 * WORD_RANGE[1]]
    )


MAKERS: Makers = {
    "read_word": (35, word),
    "read_number": (25, number),
    "read_line": (15, line),
    "read_scans": (25, scans),
}
"""Task -> (share of the training set, maker)."""
PAGE_MAKERS = {"read_page": (4, page), "read_photo": (4, photographed)}
"""Task -> (share of the training set, maker) for makers whose first argument is the paragraphs."""


LARGE_PAGES = 12
"""[ours] Factor of the shares of `PAGE_MAKERS` where images have many crops: half of the rows are pages then."""


def makers_with(work: Work) -> Makers:
    """Return all makers as functions of the scene only."""
    texts, factor = paragraphs(work), 1 if work.image_sizes is None else LARGE_PAGES
    pages = {
        task: (factor * share, partial(make, texts)) for task, (share, make) in PAGE_MAKERS.items()
    }
    return {**MAKERS, **pages}


def texts(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("ocr", work, makers_with(work))


# Compare bytes: each image is drawn at random, and perceptual hashes cost more than drawing.
corpus = Corpus(
    "ocr",
    build=texts,
    steps=against("ocr", ways=("same bytes",)),
    fresh=lambda work: fresh("ocr", work, makers_with(work)),
)
