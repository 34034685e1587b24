"""Reading: rendered words of six languages, numbers, short lines, and strings of scanned digits.

Held out for the test split: fonts, numbers and scans. Words are from the closed lexicon; Chinese and Japanese, whose
fonts pip alone doesn't bring, are not rendered.
"""

from collections.abc import Iterator

from datatrove.pipeline.base import PipelineStep

from polyphi.corpora.image_qa import LATIN, draw_digits, draw_text, pick_number
from polyphi.curate import images
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.images import SCANS, SIDE, sheet
from polyphi.curate.lexicon import lexicon
from polyphi.curate.scenes import Made, Scene, asked, samples
from polyphi.data.shards import Sample

PROMPTS = ("Read the text.", "What is written here?")


def word(scene: Scene) -> Made:
    """A word, half of the time an English one."""
    entry = scene.answer(sorted(lexicon()))
    language = "en" if scene.rng.random() < 0.5 else scene.rng.choice(LATIN[1:])
    text = lexicon()[entry][language]
    picture, font = draw_text(scene, text, scene.size(), 36)
    return asked(picture, scene.rng.choice(PROMPTS), text, language=language, font=font)


def number(scene: Scene) -> Made:
    """A number of one to three digits."""
    value = pick_number(scene)
    picture, font = draw_text(scene, str(value), scene.size(), 56)
    return asked(picture, scene.rng.choice(PROMPTS), value, font=font)


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
    return asked(picture, scene.rng.choice(PROMPTS), text, font=font, pieces=len(pieces))


def scans(scene: Scene) -> Made:
    """One to four scanned digits in a row, read as one number string."""
    values = [scene.rng.randrange(10) for _ in range(scene.answer((1, 2, 3, 4)))]
    picture = draw_digits(scene, values, scene.size())
    return asked(
        picture, scene.rng.choice(PROMPTS), "".join(map(str, values)), SCANS, length=len(values)
    )


MAKERS = {
    "read_word": (35, word),
    "read_number": (25, number),
    "read_line": (15, line),
    "read_scans": (25, scans),
}
"""Task -> (share of the training set, maker)."""


def texts(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("ocr", work, MAKERS)


def steps(work: Work) -> list[PipelineStep]:
    """By bytes: pictures of held-out lines are drawn anew, and hashing costs more than drawing."""
    return [*held_out(work, "ocr", ways=("same bytes",))]


corpus = Corpus("ocr", build=texts, steps=steps)
