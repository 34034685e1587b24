"""Reading: rendered words of six languages, numbers, short lines, strings of scanned digits; pages of help text, and
photos of such pages.

Held out for the test split: fonts, numbers, scans and help pages. Words are from the closed lexicon; Chinese and
Japanese, whose fonts pip alone doesn't bring, are not rendered. PDFs of your own: polyphi/curate/pdf_pages.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from polyphi.corpora.image_qa import LATIN, draw_digits, draw_text, pick_number
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.photos import photo
from polyphi.curate.sources import LIBREOFFICE
from polyphi.curate.text import help_pages, side
from polyphi.data.shards import Sample
from polyphi.synthetic import images
from polyphi.synthetic.images import SCANS, SIDE, sheet
from polyphi.synthetic.pages import set_page
from polyphi.synthetic.scenes import Made, Makers, Scene, asked, fresh, samples
from polyphi.text.lexicon import lexicon

PROMPTS = ("Read the text.", "What is written here?")
WRITTEN = re.compile("[ -~À-ÖØ-öø-ÿŒœ]+")
"""What every font at hand can write (the ASCII ones aside)."""
WORDS = (3, 7)
"""From how many to how many words stand on a page of one crop; on a wide one twice as many."""

LONGEST = 10
"""Letters of a word: what can still be read where it fills a crop."""

Paragraphs = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> language -> paragraphs; a language without a package has none."""


def word(scene: Scene) -> Made:
    """A word, half of the time an English one."""
    entry = scene.answer(sorted(lexicon()))
    language = "en" if scene.rng.random() < 0.5 else scene.rng.choice(LATIN[1:])
    text = lexicon()[entry][language]
    picture, font = draw_text(scene, text, scene.size(), 36)
    return asked(
        picture, scene.rng.choice(PROMPTS), text, "polyphi", language, font=font, layout="line"
    )


def number(scene: Scene) -> Made:
    """A number of one to three digits."""
    value = pick_number(scene)
    picture, font = draw_text(scene, str(value), scene.size(), 56)
    return asked(picture, scene.rng.choice(PROMPTS), value, font=font, layout="line")


def line(scene: Scene) -> Made:
    """Two or three words and numbers: below one another, or beside one another in a wide picture. Read with spaces."""
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
        picture = sheet(size, paper)
        images.write(
            picture, text, face, scene.corner(size, images.measure(text, face), margin=3), ink
        )
    else:
        picture = sheet((SIDE, SIDE), paper)
        longest = max(pieces, key=len)
        face = images.fitting(font, longest, SIDE - 14, scene.rng.randint(20, 26))
        step = (SIDE - 8) // len(pieces)
        for i, piece in enumerate(pieces):
            wide, high = images.measure(piece, face)
            x, y = (
                scene.rng.randint(4, max(4, SIDE - wide - 4)),
                4 + i * step + scene.rng.randint(0, max(0, step - high - 2)),
            )
            images.write(picture, piece, face, (x, y), ink)
    return asked(
        picture,
        scene.rng.choice(PROMPTS),
        text,
        font=font,
        pieces=len(pieces),
        layout="line",
    )


def scans(scene: Scene) -> Made:
    """One to four scanned digits in a row, read as one number string."""
    values = [scene.rng.randrange(10) for _ in range(scene.answer((1, 2, 3, 4)))]
    picture = draw_digits(scene, values, scene.size())
    said = "".join(map(str, values))
    return asked(picture, scene.rng.choice(PROMPTS), said, SCANS, length=len(values), layout="line")


def page(paragraphs: Paragraphs, scene: Scene) -> Made:
    """The beginning of a paragraph of help, set in lines; lexicon words where there is no help."""
    return _page(paragraphs, scene, photographed=False)


def photographed(paragraphs: Paragraphs, scene: Scene) -> Made:
    """A photo of such a page."""
    return _page(paragraphs, scene, photographed=True)


def _page(paragraphs: Paragraphs, scene: Scene, photographed: bool) -> Made:
    language = "en" if scene.rng.random() < 0.5 else scene.rng.choice(LATIN[1:])
    found = paragraphs[scene.split][language]
    if found:
        source, words = LIBREOFFICE[language], scene.rng.choice(found).split()
    else:
        short = [w for entry in lexicon().values() if len(w := entry[language]) <= LONGEST]
        source, words = "polyphi", scene.rng.sample(short, 2 * WORDS[1])
    size = (2 * SIDE, SIDE) if scene.rng.random() < 0.25 else (SIDE, SIDE)
    count = scene.rng.randint(*WORDS) * size[0] // SIDE
    picture, said, font = set_page(" ".join(words[:count]), scene, size)
    shown = photo(picture, scene.rng) if photographed else picture
    return asked(shown, scene.rng.choice(PROMPTS), said, source, language, font=font, layout="page")


def paragraphs(work: Work) -> Paragraphs:
    """Paragraphs of LibreOffice's help that can be written on a page, each once, by split and language; in the test
    split none that a training page has too."""
    found: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for language in LATIN:
        pages = help_pages(language, work)
        for split, kept in found.items():
            paths = (path for path in sorted(pages) if side(split, path, percent=5))
            told = (text for path in paths for _, text in pages[path].paragraphs if _fits(text))
            kept[language] = list(dict.fromkeys(told))
        seen = set(found["train"][language])
        found["test"][language] = [text for text in found["test"][language] if text not in seen]
    return found


def _fits(text: str) -> bool:
    """Whether a page can be made of its first words."""
    words = text.split()
    return len(words) >= WORDS[0] and all(
        len(word) <= LONGEST and WRITTEN.fullmatch(word) for word in words[: 2 * WORDS[1]]
    )


MAKERS: Makers = {
    "read_word": (35, word),
    "read_number": (25, number),
    "read_line": (15, line),
    "read_scans": (25, scans),
}
"""Task -> (share of the training set, maker)."""
PAGE_MAKERS = {"read_page": (4, page), "read_photo": (4, photographed)}
"""The same for makers that need paragraphs."""


def makers_with(known: Paragraphs) -> Makers:
    """All makers, those of pages with paragraphs to set."""
    pages = {task: (share, partial(make, known)) for task, (share, make) in PAGE_MAKERS.items()}
    return {**MAKERS, **pages}


def texts(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("ocr", work, makers_with(paragraphs(work)))


# By bytes: pictures of held-out lines are drawn anew, and hashing costs more than drawing.
corpus = Corpus(
    "ocr",
    build=texts,
    steps=against("ocr", ways=("same bytes",)),
    fresh=lambda work: fresh("ocr", work, makers_with(paragraphs(work))),
)
