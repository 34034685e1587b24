"""Questions about one image: scanned digits, counting, colours, shapes, stamps, words and numbers, positions, charts,
and a few requests to refuse, with their innocuous look-alikes (the report's model safety, 3.2).

The single-image instruction set of `vision_3_generative`. Held out for the test split: scans, stamps, fonts, numbers
and rotations of a shape in a colour. A fifth of the translatable questions are in the other seven languages.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from polyphi.data.shards import Sample
from polyphi.text.scripts import UNSPACED
from polyphi.types.messages import Message
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw import safety
from polyphi_recipe.synthetic import charts, images, stamps
from polyphi_recipe.synthetic.described_scenes import DESCRIBE, plural, shape_phrase
from polyphi_recipe.synthetic.described_scenes import POSITIONS as POSITION_PHRASES
from polyphi_recipe.synthetic.images import PAIRS, SCANS, SIDE
from polyphi_recipe.synthetic.scenes import (
    OTHER_LANGUAGES,
    Makers,
    Scene,
    SceneSample,
    fresh,
    image_question,
    samples,
)
from polyphi_recipe.synthetic.stamps import CATEGORIES, CATEGORY_WORDS, STAMPS, Album, Stamp
from polyphi_recipe.text.lexicon import COLOUR_RGB, COLOURS, LANGUAGES, SHAPES, lexicon

PLURALS = {shape: plural(shape, 2) for shape in SHAPES}
MOST = 6  # things to count
MORE_TURNS = 3
LATIN = tuple(
    language for language in LANGUAGES if language not in UNSPACED
)  # the available fonts have their characters

QUESTIONS: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)
"""Task -> language -> questions. They are also synthesized as speech, so they contain only speakable text."""


def ask(scene: Scene, task: str, language: str) -> str:
    return scene.rng.choice(QUESTIONS[task][language])


def multilingual_questions(scene: Scene, shape: str, colour: str) -> list[tuple[str, object]]:
    """Return questions in all languages for shape and colour of the only object in an image, with their answers."""
    names = (("shape", SHAPES[shape]), ("colour", COLOURS[colour]))
    return [
        (ask(scene, task, language), words[language])
        for task, words in names
        for language in scene.languages
    ]


def with_more_turns(
    scene: Scene,
    first_turn: SceneSample,
    turns: Sequence[tuple[str, object]],
    most: int = MORE_TURNS,
) -> SceneSample:
    """Append at most `most` of the questions and answers `turns` in training, so that one image serves for several."""
    if scene.split != "train":
        return first_turn
    chosen = scene.rng.sample(turns, min(most, len(turns)))
    more = (m for q, a in chosen for m in (Message.user(q), Message.assistant(str(a))))
    return replace(first_turn, messages=(*first_turn.messages, *more))


def digit(scene: Scene) -> SceneSample:
    """Return a question for one large scanned digit."""
    value, language, size = scene.answer(range(10)), scene.language(), scene.size()
    paper = scene.paper()
    image, side = scene.sheet(size, paper), scene.rng.randint(76, 104)
    corner = scene.corner(size, (side, side))
    images.stamp_digits(image, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng)
    first_turn = image_question(image, ask(scene, "digit", language), value, SCANS, language)
    return with_more_turns(
        scene, first_turn, [(ask(scene, "digit", o), value) for o in scene.languages]
    )


def draw_digits(scene: Scene, values: list[int], size: tuple[int, int]) -> Image.Image:
    """Draw scanned digits in one row at a random position."""
    paper = scene.paper()
    largest = min(48, int((size[0] - 4) / (0.9 * len(values) + 0.1)))
    image, side = scene.sheet(size, paper), scene.rng.randint(3 * largest // 4, largest)
    wide = round(side * (0.9 * len(values) + 0.1))
    corner = scene.corner(size, (wide, side))
    images.stamp_digits(
        image, [scene.scan(v) for v in values], corner, side, scene.ink(paper), rng=scene.rng
    )
    return image


def row_size(scene: Scene, characters: int) -> tuple[int, int]:
    """Return (width, height) in units of an image for a row of characters: twice as wide for three or more, so that
    rarely two of them are centred in the same cell of 28 pixels."""
    return (2 * SIDE, SIDE) if characters > 2 else scene.size()


def digits(scene: Scene) -> SceneSample:
    """Return a question for two to four scanned digits in a row."""
    values = [scene.rng.randrange(10) for _ in range(scene.answer((2, 3, 4)))]
    image = draw_digits(scene, values, row_size(scene, len(values)))
    question = scene.rng.choice(
        ("What digits do you see?", "Which digits are these?", "Read the digits.")
    )
    text = "".join(map(str, values))
    first_turn = image_question(image, question, text, SCANS, length=len(values))
    return with_more_turns(scene, first_turn, [(scene.rng.choice(DESCRIBE), f"the digits {text}")])


def count(scene: Scene) -> SceneSample:
    """Return a question for the number of one to six shapes or stamps; a quarter of the scenes has distractors."""
    total, size = scene.answer(range(1, MOST + 1)), scene.size()
    side = scene.rng.randint(20, 34) * min(size) // SIDE
    if scene.album and scene.rng.random() < 0.25:
        stamp, language = scene.stamp(), scene.language()
        image = scene.sheet(size, stamp.paper(scene.rng))
        for corner in scene.scatter(total, side, size):
            cutout = stamp.cutout(side, images.scale(image))
            images.stamp_cutout(image, cutout, corner, stamp.category or "thing")
        if language != "en":
            return image_question(
                image, ask(scene, "count", language), total, STAMPS, language, stamp=stamp.id
            )
        question = scene.rng.choice(("How many things are there?", "Count the things."))
        return image_question(image, question, total, STAMPS, stamp=stamp.id)
    shape, colour = scene.pair()
    others = scene.rng.randint(1, 3) if scene.rng.random() < 0.25 else 0
    paper = scene.paper(COLOUR_RGB[colour])
    image = scene.sheet(size, paper)
    other = scene.rng.choice([s for s in SHAPES if s != shape])
    for i, corner in enumerate(scene.scatter(total + others, side, size)):
        one = scene.rng.randint(int(0.75 * side), side)
        scene.shape(image, shape if i < total else other, colour, corner, one)
    language = "en" if others else scene.language()
    if language != "en":
        return image_question(image, ask(scene, "count", language), total, language=language)
    question = scene.rng.choice(
        (f"How many {PLURALS[shape]} are there?", f"Count the {PLURALS[shape]}.")
    )
    first_turn = image_question(image, question, total)
    if others:
        return with_more_turns(
            scene, first_turn, [(f"How many {PLURALS[other]} are there?", others)]
        )
    return with_more_turns(
        scene, first_turn, [(ask(scene, "count", o), total) for o in scene.languages if o != "en"]
    )


def _of(scene: Scene, part: int, values: Mapping[str, object]) -> tuple[str, str]:
    """Return a (shape, colour) whose `part` (0 or 1) is the balanced answer."""
    answer = scene.answer(list(values))
    return scene.rng.choice([pair for pair in PAIRS if pair[part] == answer])


def _single(scene: Scene, shape: str, colour: str) -> Image.Image:
    size = scene.size()
    image, side = scene.sheet(size, scene.paper(COLOUR_RGB[colour])), scene.rng.randint(36, 92)
    corner = scene.corner(size, (side, side))
    scene.shape(image, shape, colour, corner, side)
    return image


def colour(scene: Scene) -> SceneSample:
    """Return a question for the colour of a shape, or of one of two: the harder case, more frequent in training."""
    shape, name = _of(scene, 1, COLOURS)
    if scene.rng.random() < (0.7 if scene.split == "train" else 0.35):
        other = scene.rng.choice([(s, c) for s, c in PAIRS if s != shape and c != name])
        colours = COLOUR_RGB[name], COLOUR_RGB[other[1]]
        image = scene.sheet((SIDE, SIDE), scene.paper(*colours))
        for (s, c), corner in zip([(shape, name), other], scene.scatter(2, 40), strict=True):
            scene.shape(image, s, c, corner, 40)
        question = scene.rng.choice(
            (f"What colour is the {shape}?", f"What is the colour of the {shape}?")
        )
        turns = [t for pair in ((shape, name), other) for t in _pair_questions(*pair)]
        return with_more_turns(scene, image_question(image, question, name), turns)
    language = scene.language()
    first_turn = image_question(
        _single(scene, shape, name),
        ask(scene, "colour", language),
        COLOURS[name][language],
        language=language,
    )
    return with_more_turns(scene, first_turn, multilingual_questions(scene, shape, name))


def _pair_questions(shape: str, colour: str) -> list[tuple[str, object]]:
    """Return questions for one of two shapes by its shape and by its colour, with their answers."""
    return [(f"What colour is the {shape}?", colour), (f"Which shape is {colour}?", shape)]


def shape(scene: Scene) -> SceneSample:
    """Return a question for the name of a shape."""
    name, tint = _of(scene, 0, SHAPES)
    language = scene.language()
    first_turn = image_question(
        _single(scene, name, tint),
        ask(scene, "shape", language),
        SHAPES[name][language],
        language=language,
    )
    return with_more_turns(scene, first_turn, multilingual_questions(scene, name, tint))


def draw_stamp(
    scene: Scene, stamp: Stamp, size: tuple[int, int], smallest: int = 66, largest: int = 100
) -> Image.Image:
    """Draw one stamp; half of the stamps without text are mirrored."""
    image = scene.sheet(size, stamp.paper(scene.rng))
    factor = images.scale(image)
    cutout = stamp.cutout(scene.rng.randint(smallest, largest), factor)
    if (
        scene.rng.random() < 0.5
        and stamp.category not in ("letter", "sign", "coin")
        and not stamp.id.startswith("symbols/")
    ):
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    units = math.ceil(cutout.width / factor), math.ceil(cutout.height / factor)
    images.stamp_cutout(image, cutout, scene.corner(size, units), stamp.category or "thing")
    return image


def stamp(scene: Scene) -> SceneSample:
    """Return a question for the category of a stamp."""
    category, language = scene.answer(list(CATEGORIES)), scene.language()
    stamp_image = scene.stamp(category)
    image = draw_stamp(scene, stamp_image, scene.size())
    return image_question(
        image,
        ask(scene, "stamp", language),
        CATEGORY_WORDS[category][language],
        STAMPS,
        language,
        stamp=stamp_image.id,
    )


def draw_text(
    scene: Scene, text: str, size: tuple[int, int], largest: int
) -> tuple[Image.Image, str]:
    """Return an image of a line of text in a font of the split at a random position, and the font's name."""
    paper, name = scene.paper(), scene.font(text)
    face = images.fitting(name, text, size[0] - 8, scene.rng.randint(largest * 2 // 3, largest))
    image = scene.sheet(size, paper)
    corner = scene.corner(size, images.measure(text, face), margin=3)
    images.write(image, text, face, corner, scene.ink(paper))
    return image, name


ONE_LINE = 9
"""Characters of a name that is drawn in one line; a longer one of several words is drawn in two, in larger letters."""


def draw_name(scene: Scene, name: str) -> tuple[Image.Image, str]:
    """Return an image of the name of a thing in one or two lines, and the font's name."""
    words = name.split()
    if len(name) <= ONE_LINE or len(words) == 1:
        return draw_text(scene, name, row_size(scene, len(name)), 54)
    half = min(range(1, len(words)), key=lambda i: abs(len(" ".join(words[:i])) - len(name) / 2))
    lines = [" ".join(words[:half]), " ".join(words[half:])]
    size, paper, font = (2 * SIDE, SIDE), scene.paper(), scene.font(name)
    largest = scene.rng.randint(28, 42)
    faces = [images.fitting(font, line, size[0] - 8, largest) for line in lines]
    image, ink = scene.sheet(size, paper), scene.ink(paper)
    for top, line, face in zip((4, SIDE // 2 + 2), lines, faces, strict=True):
        x, y = scene.corner((size[0], SIDE // 2 - 4), images.measure(line, face))
        images.write(image, line, face, (x, top + y), ink)
    return image, font


def latin(scene: Scene) -> list[str]:
    """Return the scene's languages with Latin script, without English."""
    return [language for language in LATIN[1:] if language in scene.languages]


def word(scene: Scene) -> SceneSample:
    """Return a question for a rendered word of the lexicon; one in six is in another language with Latin script."""
    english = scene.answer(sorted(lexicon()))
    language = scene.rng.choice(latin(scene)) if scene.rng.random() < 1 / 6 else "en"
    text = lexicon()[english][language]
    image, font = draw_text(scene, text, row_size(scene, len(text)), 54)
    question = scene.rng.choice(("What word is this?", "Which word do you see?", "Read the word."))
    return image_question(image, question, text, language=language, font=font)


def pick_number(scene: Scene) -> int:
    """Return a number of the split. Its length is drawn first, otherwise nearly all would have three digits."""
    length = scene.answer((2, 3) if scene.split == "test" else (1, 2, 3))
    return scene.answer(_numbers(scene.split, length), every=2)


@cache
def _numbers(split: str, length: int) -> list[int]:
    return [n for n in images.numbers(split) if len(str(n)) == length]


def number(scene: Scene) -> SceneSample:
    """Return a question for a rendered number of one to three digits."""
    value = pick_number(scene)
    image, font = draw_text(scene, str(value), row_size(scene, len(str(value))), 66)
    question = scene.rng.choice(
        ("What number is this?", "Which number do you see?", "Read the number.")
    )
    return image_question(image, question, value, font=font)


SIDES: dict[str, tuple[float, float]] = {
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
}
"""Side of the image -> position as shares of width and height."""


def corner_near(scene: Scene, position: str, side: int) -> tuple[int, int]:
    """Return a corner for an item of `side` pixels near the side `position` of the image."""
    slack = SIDE - side
    x, y = (p * slack + scene.rng.uniform(-0.14, 0.14) * slack for p in SIDES[position])
    return int(min(slack, max(0, x))), int(min(slack, max(0, y)))


WHERE_QUESTIONS = ("Where is the {}?", "On which side is the {}?")


def where(scene: Scene) -> SceneSample:
    """Return a question for the side on which a shape is; half of the images have another shape on another side."""
    position, (name, tint) = scene.answer(list(SIDES)), scene.pair()
    objects = [(name, tint, position)]
    if scene.rng.random() < 0.5:
        other = scene.rng.choice([pair for pair in PAIRS if pair[0] != name])
        objects.append((*other, scene.rng.choice([p for p in SIDES if p != position])))
    image = scene.sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in objects)))
    for s, c, p in objects:
        side = scene.rng.randint(26, 36)
        scene.shape(image, s, c, corner_near(scene, p, side), side)
    first_turn = image_question(image, scene.rng.choice(WHERE_QUESTIONS).format(name), position)
    others = [(scene.rng.choice(WHERE_QUESTIONS).format(s), p) for s, _, p in objects[1:]]
    return with_more_turns(
        scene, first_turn, [*others, *(t for s, c, _ in objects for t in _pair_questions(s, c))]
    )


def more(scene: Scene) -> SceneSample:
    """Return a question which of two colours is more frequent: yes or no, or the colour."""
    answer = scene.answer(("yes", "no", "colour", "colour"))
    first = scene.answer(list(COLOURS), every=4)
    second = scene.rng.choice([c for c in COLOURS if c != first])
    few = scene.rng.randint(1, 3)
    many = few + scene.rng.choice((1, 2, 2, 3, 3))
    # The first colour of the question is more frequent, unless the answer is no.
    counts = {first: few, second: many} if answer == "no" else {first: many, second: few}
    name = scene.rng.choice(list(SHAPES))
    image = scene.sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for c in counts)))
    items = [c for c, n in counts.items() for _ in range(n)]
    for c, corner in zip(items, scene.scatter(len(items), 24), strict=True):
        scene.shape(image, name, c, corner, scene.rng.randint(20, 24))
    if answer != "colour":
        return image_question(
            image,
            f"Are there more {first} than {second} {PLURALS[name]}?",
            answer,
            form="yes or no",
        )
    one, two = scene.rng.sample([first, second], 2)
    return image_question(
        image, f"Which colour is there more of, {one} or {two}?", first, form="colour"
    )


def pick_values(scene: Scene, count: int) -> tuple[int, ...]:
    """Return `count` different values from 1 to 9."""
    return tuple(scene.rng.sample(range(1, charts.LARGEST + 1), count))


VALUE_QUESTIONS = ("What is the value of the {} bar?", "What number has the {} bar?")


def chart(scene: Scene) -> SceneSample:
    """Return a question for the highest, the lowest or the value of a bar in a chart of three or four colours."""
    form = scene.answer(("highest", "value", "lowest"))
    labels = scene.rng.sample(list(COLOURS), scene.rng.choice((3, 4)))
    values = list(pick_values(scene, len(labels)))
    if form == "value":
        label, value = labels[0], scene.answer(range(1, charts.LARGEST + 1), every=3)
        values[0] = value
        while len(set(values)) < len(values):
            values[1:] = pick_values(scene, len(values) - 1)
    else:
        label = scene.answer(list(COLOURS), every=3)
        labels = [label, *[c for c in labels if c != label]][: len(labels)]
        values.sort(reverse=form == "highest")
    order = scene.rng.sample(range(len(labels)), len(labels))
    draw = scene.rng.choice((charts.columns, charts.columns, charts.rows))
    drawn = draw(scene, [labels[i] for i in order], [values[i] for i in order], scene.size())
    most, least = ("longest", "shortest") if draw is charts.rows else ("highest", "lowest")
    ends = {
        "highest": (f"Which bar is {most}?", drawn.highest()),
        "lowest": (f"Which bar is {least}?", drawn.lowest()),
    }
    values_of = {
        name: (scene.rng.choice(VALUE_QUESTIONS).format(name), drawn.value(name)) for name in labels
    }
    question, answer = values_of[label] if form == "value" else ends[form]
    first_turn = image_question(drawn.image, question, answer, form=form)
    turns = [*ends.values(), *values_of.values()]
    return with_more_turns(scene, first_turn, [turn for turn in turns if turn[0] != question])


def request(scene: Scene) -> SceneSample:
    """Return a request about an object whose name is in the image and decides whether to refuse; half are harmful."""
    other = scene.rng.random() < OTHER_LANGUAGES
    language = scene.rng.choice(latin(scene)) if other else "en"
    harmful = scene.answer((True, False))
    pair, thing = scene.rng.choice(_pictured(scene.split, language, harmful))
    image, font = draw_name(scene, thing)
    meta = {"language": language, "refuse": harmful, "font": font}
    first_turn = image_question(image, pair.question, pair.chosen, **meta)
    return with_more_turns(scene, first_turn, [(scene.rng.choice(READ_WORDS), thing)])


READ_WORDS = ("Which words do you see?", "Read the words.")
_pictured = cache(safety.pictured)


def talk(scene: Scene) -> SceneSample:
    """Return a conversation about an image of shapes: its description and several questions in random order, so that
    one image serves for many turns."""
    form = scene.rng.choice(("alike", "alike", "place", "two"))
    shape, colour = scene.pair()
    count = 1 if form == "place" else scene.rng.randint(1, MOST if form == "alike" else 3)
    groups = [(count, colour, shape)]
    if form == "two":
        other = [(s, c) for s, c in PAIRS if s != shape and c != colour]
        s, c = scene.rng.choice(other)
        groups.append((scene.rng.randint(1, 3), c, s))
    description = " and ".join(shape_phrase(*group) for group in groups)
    turns: list[tuple[str, object]] = []
    if form == "place":
        position, side = scene.rng.choice(list(SIDES)), scene.rng.randint(26, 44)
        corners = [corner_near(scene, position, side)]
        description += f" {POSITION_PHRASES[position]}"
        turns.append((f"Where is the {shape}?", position))
    else:
        total = sum(n for n, _, _ in groups)
        side = scene.rng.randint(44, 92) if total == 1 else scene.rng.randint(24, 34)
        corners = scene.scatter(total, side)
    image = scene.sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in groups)))
    shape_list = [(c, s) for n, c, s in groups for _ in range(n)]
    for (c, s), corner in zip(shape_list, corners, strict=True):
        scene.shape(image, s, c, corner, side)
    for n, c, s in groups:
        turns.append((f"How many {PLURALS[s]} are there?", n))
        turns += multilingual_questions(scene, s, c) if len(groups) == 1 else _pair_questions(s, c)
    turns.append((scene.rng.choice(DESCRIBE), description))
    scene.rng.shuffle(turns)
    return with_more_turns(scene, image_question(image, *turns[0]), turns[1:])


MAKERS: Makers = {
    "digit": (5, digit),
    "digits": (15, digits),
    "count": (12, count),
    "colour": (9, colour),
    "shape": (7, shape),
    "stamp": (1, stamp),
    "word": (7, word),
    "number": (13, number),
    "where": (13, where),
    "more": (2, more),
    "chart": (12, chart),
    "talk": (16, talk),
    "request": (9, request),
}
"""Task -> (share of the training set, maker). Test rows have one question each."""


def makers_with(album: Album) -> Makers:
    """Return all makers, or, without stamps, those that need none."""
    return {task: maker for task, maker in MAKERS.items() if album or task != "stamp"}


def questions(work: Work) -> Iterator[tuple[str, Sample]]:
    album = stamps.load(work)
    makers = makers_with(album)
    return samples(
        "image_qa", work, makers, album, tests=[task for task in makers if task != "talk"]
    )


def fresh_questions(work: Work) -> Callable[[int], Sample]:
    album = stamps.load(work)
    return fresh("image_qa", work, makers_with(album), album)


# Compare bytes: perceptual hashes of so many images would cost more than drawing them.
corpus = Corpus(
    "image_qa",
    build=questions,
    steps=against("image_qa", ways=("same bytes",)),
    fresh=fresh_questions,
)
