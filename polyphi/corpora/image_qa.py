"""Questions about one picture: scanned digits, counting, colours, shapes, stamps, words and numbers, places, charts,
and a few requests to refuse, with their innocuous look-alikes (the report's model safety, 3.2).

The single-image instruction set of `vision_3_generative`. Held out for the test split: scans, stamps, fonts, numbers
and turns of a shape in a colour. A fifth of the questions that allow it are asked in the other seven languages.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from polyphi.curate import safety
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.data.shards import Sample
from polyphi.messages import Message
from polyphi.synthetic import charts, images, stamps
from polyphi.synthetic.images import PAIRS, SCANS, SIDE, sheet
from polyphi.synthetic.instructions import DESCRIBE, several
from polyphi.synthetic.instructions import PLACES as TOLD_PLACES
from polyphi.synthetic.scenes import OTHER_LANGUAGES, Made, Makers, Scene, asked, fresh, samples
from polyphi.synthetic.stamps import KIND_WORDS, KINDS, STAMPS, Album, Stamp
from polyphi.text.lexicon import COLOUR_RGB, COLOURS, LANGUAGES, SHAPES, lexicon
from polyphi.text.scripts import UNSPACED

PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
MOST = 6  # things to count
MORE_TURNS = 3
LATIN = tuple(
    language for language in LANGUAGES if language not in UNSPACED
)  # the fonts at hand write these

QUESTIONS: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)
"""Task -> language -> ways to ask. They are also read aloud, so they hold nothing that only an eye could use."""


def ask(scene: Scene, task: str, language: str) -> str:
    return scene.rng.choice(QUESTIONS[task][language])


def in_any_language(scene: Scene, shape: str, colour: str) -> list[tuple[str, object]]:
    """The questions for the shape and the colour of the only thing in a picture, with their answers."""
    names = (("shape", SHAPES[shape]), ("colour", COLOURS[colour]))
    return [
        (ask(scene, task, language), words[language])
        for task, words in names
        for language in scene.languages
    ]


def asked_more(scene: Scene, made: Made, turns: Sequence[tuple[str, object]]) -> Made:
    """In training some of these questions and answers follow the first one: a picture is looked at once for all."""
    if scene.split != "train":
        return made
    chosen = scene.rng.sample(turns, min(MORE_TURNS, len(turns)))
    more = (m for q, a in chosen for m in (Message.user(q), Message.assistant(str(a))))
    return replace(made, messages=(*made.messages, *more))


def digit(scene: Scene) -> Made:
    """One scanned digit, large."""
    value, language, size = scene.answer(range(10)), scene.language(), scene.size()
    paper = scene.paper()
    picture, side = sheet(size, paper), scene.rng.randint(76, 104)
    corner = scene.corner(size, (side, side))
    images.stamp_digits(picture, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng)
    made = asked(picture, ask(scene, "digit", language), value, SCANS, language)
    return asked_more(scene, made, [(ask(scene, "digit", o), value) for o in scene.languages])


def draw_digits(scene: Scene, values: list[int], size: tuple[int, int]) -> Image.Image:
    """Scanned digits in one row, somewhere in the picture."""
    paper = scene.paper()
    largest = min(48, int((size[0] - 4) / (0.9 * len(values) + 0.1)))
    picture, side = sheet(size, paper), scene.rng.randint(3 * largest // 4, largest)
    wide = round(side * (0.9 * len(values) + 0.1))
    corner = scene.corner(size, (wide, side))
    images.stamp_digits(
        picture, [scene.scan(v) for v in values], corner, side, scene.ink(paper), rng=scene.rng
    )
    return picture


def row_size(scene: Scene, characters: int) -> tuple[int, int]:
    """(width, height) of a picture with so many characters in a row: two crops from three on, so that hardly two of
    them have their middles in one cell of 28 pixels."""
    return (2 * SIDE, SIDE) if characters > 2 else scene.size()


def digits(scene: Scene) -> Made:
    """Two to four scanned digits in a row."""
    values = [scene.rng.randrange(10) for _ in range(scene.answer((2, 3, 4)))]
    picture = draw_digits(scene, values, row_size(scene, len(values)))
    question = scene.rng.choice(
        ("What digits do you see?", "Which digits are these?", "Read the digits.")
    )
    written = "".join(map(str, values))
    made = asked(picture, question, written, SCANS, length=len(values))
    return asked_more(scene, made, [(scene.rng.choice(DESCRIBE), f"the digits {written}")])


def count(scene: Scene) -> Made:
    """One to six shapes or stamps; in a quarter of the scenes other shapes stand about that don't count."""
    total, size = scene.answer(range(1, MOST + 1)), scene.size()
    side = scene.rng.randint(20, 34) * size[1] // SIDE
    if scene.album and scene.rng.random() < 0.25:
        stamp, language = scene.stamp(), scene.language()
        picture = sheet(size, stamp.paper(scene.rng))
        for corner in scene.scatter(total, side, size):
            cutout = stamp.cutout(side)
            picture.paste(cutout, corner, cutout)
            images.name(picture, stamp.kind or "thing", corner, cutout.size)
        if language != "en":
            return asked(
                picture, ask(scene, "count", language), total, STAMPS, language, stamp=stamp.id
            )
        question = scene.rng.choice(("How many things are there?", "Count the things."))
        return asked(picture, question, total, STAMPS, stamp=stamp.id)
    shape, colour = scene.pair()
    others = scene.rng.randint(1, 3) if scene.rng.random() < 0.25 else 0
    paper = scene.paper(COLOUR_RGB[colour])
    picture = sheet(size, paper)
    other = scene.rng.choice([s for s in SHAPES if s != shape])
    for i, corner in enumerate(scene.scatter(total + others, side, size)):
        one = scene.rng.randint(int(0.75 * side), side)
        scene.shape(picture, shape if i < total else other, colour, corner, one)
    language = "en" if others else scene.language()
    if language != "en":
        return asked(picture, ask(scene, "count", language), total, language=language)
    question = scene.rng.choice(
        (f"How many {PLURALS[shape]} are there?", f"Count the {PLURALS[shape]}.")
    )
    made = asked(picture, question, total)
    if others:
        return asked_more(scene, made, [(f"How many {PLURALS[other]} are there?", others)])
    return asked_more(
        scene, made, [(ask(scene, "count", o), total) for o in scene.languages if o != "en"]
    )


def _of(scene: Scene, part: int, values: Mapping[str, object]) -> tuple[str, str]:
    """A (shape, colour) whose `part` (0 or 1) is the balanced answer."""
    wanted = scene.answer(list(values))
    return scene.rng.choice([pair for pair in PAIRS if pair[part] == wanted])


def _single(scene: Scene, shape: str, colour: str) -> Image.Image:
    size = scene.size()
    picture, side = sheet(size, scene.paper(COLOUR_RGB[colour])), scene.rng.randint(36, 92)
    corner = scene.corner(size, (side, side))
    scene.shape(picture, shape, colour, corner, side)
    return picture


def colour(scene: Scene) -> Made:
    """The colour of a shape, or of one of two, which are asked more often in training: they are the harder ones."""
    shape, name = _of(scene, 1, COLOURS)
    if scene.rng.random() < (0.7 if scene.split == "train" else 0.35):
        other = scene.rng.choice([(s, c) for s, c in PAIRS if s != shape and c != name])
        colours = COLOUR_RGB[name], COLOUR_RGB[other[1]]
        picture = sheet((SIDE, SIDE), scene.paper(*colours))
        for (s, c), corner in zip([(shape, name), other], scene.scatter(2, 40), strict=True):
            scene.shape(picture, s, c, corner, 40)
        question = scene.rng.choice(
            (f"What colour is the {shape}?", f"What is the colour of the {shape}?")
        )
        turns = [t for pair in ((shape, name), other) for t in _told_apart(*pair)]
        return asked_more(scene, asked(picture, question, name), turns)
    language = scene.language()
    made = asked(
        _single(scene, shape, name),
        ask(scene, "colour", language),
        COLOURS[name][language],
        language=language,
    )
    return asked_more(scene, made, in_any_language(scene, shape, name))


def _told_apart(shape: str, colour: str) -> list[tuple[str, object]]:
    """Questions about one of two things, with their answers."""
    return [(f"What colour is the {shape}?", colour), (f"Which shape is {colour}?", shape)]


def shape(scene: Scene) -> Made:
    """The name of a shape."""
    name, tint = _of(scene, 0, SHAPES)
    language = scene.language()
    made = asked(
        _single(scene, name, tint),
        ask(scene, "shape", language),
        SHAPES[name][language],
        language=language,
    )
    return asked_more(scene, made, in_any_language(scene, name, tint))


def draw_stamp(
    scene: Scene, stamp: Stamp, size: tuple[int, int], smallest: int = 66, largest: int = 100
) -> Image.Image:
    """One stamp, half of the time mirrored, unless it is writing."""
    picture = sheet(size, stamp.paper(scene.rng))
    cutout = stamp.cutout(scene.rng.randint(smallest, largest))
    if (
        scene.rng.random() < 0.5
        and stamp.kind not in ("letter", "sign", "coin")
        and not stamp.id.startswith("symbols/")
    ):
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    corner = scene.corner(size, cutout.size)
    picture.paste(cutout, corner, cutout)
    images.name(picture, stamp.kind or "thing", corner, cutout.size)
    return picture


def stamp(scene: Scene) -> Made:
    """What kind of thing a stamp shows."""
    kind, language = scene.answer(list(KINDS)), scene.language()
    found = scene.stamp(kind)
    picture = draw_stamp(scene, found, scene.size())
    return asked(
        picture,
        ask(scene, "stamp", language),
        KIND_WORDS[kind][language],
        STAMPS,
        language,
        stamp=found.id,
    )


def draw_text(
    scene: Scene, text: str, size: tuple[int, int], largest: int
) -> tuple[Image.Image, str]:
    """A line of text in a font of the split, somewhere in the picture, and the font's name."""
    paper, name = scene.paper(), scene.font(text)
    face = images.fitting(name, text, size[0] - 8, scene.rng.randint(largest * 2 // 3, largest))
    picture = sheet(size, paper)
    corner = scene.corner(size, images.measure(text, face), margin=3)
    images.write(picture, text, face, corner, scene.ink(paper))
    return picture, name


def latin(scene: Scene) -> list[str]:
    """Languages but English that are written in Latin letters here."""
    return [language for language in LATIN[1:] if language in scene.languages]


def word(scene: Scene) -> Made:
    """A rendered word of the lexicon; one in six in another language written in Latin letters."""
    english = scene.answer(sorted(lexicon()))
    language = scene.rng.choice(latin(scene)) if scene.rng.random() < 1 / 6 else "en"
    text = lexicon()[english][language]
    picture, font = draw_text(scene, text, row_size(scene, len(text)), 54)
    question = scene.rng.choice(("What word is this?", "Which word do you see?", "Read the word."))
    return asked(picture, question, text, language=language, font=font)


def pick_number(scene: Scene) -> int:
    """A number of the split, its length first: else nearly all would have three digits."""
    length = scene.answer((2, 3) if scene.split == "test" else (1, 2, 3))
    return scene.answer(_numbers(scene.split, length), every=2)


@cache
def _numbers(split: str, length: int) -> list[int]:
    return [n for n in images.numbers(split) if len(str(n)) == length]


def number(scene: Scene) -> Made:
    """A rendered number of one to three digits."""
    value = pick_number(scene)
    picture, font = draw_text(scene, str(value), row_size(scene, len(str(value))), 66)
    question = scene.rng.choice(
        ("What number is this?", "Which number do you see?", "Read the number.")
    )
    return asked(picture, question, value, font=font)


PLACES: dict[str, tuple[float, float]] = {
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
}
"""Side of the picture -> where along its width and height."""


def at(scene: Scene, place: str, side: int) -> tuple[int, int]:
    """A corner for an item of `side` pixels near that side of the picture."""
    free = SIDE - side
    x, y = (p * free + scene.rng.uniform(-0.14, 0.14) * free for p in PLACES[place])
    return int(min(free, max(0, x))), int(min(free, max(0, y)))


WHERE = ("Where is the {}?", "On which side is the {}?")


def where(scene: Scene) -> Made:
    """On which side of the picture a shape is; half of the time another shape is elsewhere."""
    place, (name, tint) = scene.answer(list(PLACES)), scene.pair()
    things = [(name, tint, place)]
    if scene.rng.random() < 0.5:
        other = scene.rng.choice([pair for pair in PAIRS if pair[0] != name])
        things.append((*other, scene.rng.choice([p for p in PLACES if p != place])))
    picture = sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in things)))
    for s, c, p in things:
        side = scene.rng.randint(26, 36)
        scene.shape(picture, s, c, at(scene, p, side), side)
    made = asked(picture, scene.rng.choice(WHERE).format(name), place)
    others = [(scene.rng.choice(WHERE).format(s), p) for s, _, p in things[1:]]
    return asked_more(scene, made, [*others, *(t for s, c, _ in things for t in _told_apart(s, c))])


def more(scene: Scene) -> Made:
    """Which of two colours there is more of: yes or no, or the colour."""
    answer = scene.answer(("yes", "no", "colour", "colour"))
    first = scene.answer(list(COLOURS), every=4)
    second = scene.rng.choice([c for c in COLOURS if c != first])
    few = scene.rng.randint(1, 3)
    many = few + scene.rng.choice((1, 2, 2, 3, 3))
    # The colour named first has more, unless the answer is no.
    counts = {first: few, second: many} if answer == "no" else {first: many, second: few}
    name = scene.rng.choice(list(SHAPES))
    picture = sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for c in counts)))
    items = [c for c, n in counts.items() for _ in range(n)]
    for c, corner in zip(items, scene.scatter(len(items), 24), strict=True):
        scene.shape(picture, name, c, corner, scene.rng.randint(20, 24))
    if answer != "colour":
        return asked(
            picture,
            f"Are there more {first} than {second} {PLURALS[name]}?",
            answer,
            form="yes or no",
        )
    one, two = scene.rng.sample([first, second], 2)
    return asked(picture, f"Which colour is there more of, {one} or {two}?", first, form="colour")


def pick_values(scene: Scene, count: int) -> tuple[int, ...]:
    """Different values from 1 to 9."""
    return tuple(scene.rng.sample(range(1, charts.LARGEST + 1), count))


VALUE = ("What is the value of the {} bar?", "What number has the {} bar?")


def chart(scene: Scene) -> Made:
    """A bar chart of three or four colours: which is highest or lowest, or the value of one."""
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
    values_of = {name: (scene.rng.choice(VALUE).format(name), drawn.value(name)) for name in labels}
    question, answer = values_of[label] if form == "value" else ends[form]
    made = asked(drawn.picture, question, answer, form=form)
    turns = [*ends.values(), *values_of.values()]
    return asked_more(scene, made, [turn for turn in turns if turn[0] != question])


def request(scene: Scene) -> Made:
    """What can I do with this? The picture names the thing, which decides whether to refuse; half of them are
    harmful."""
    other = scene.rng.random() < OTHER_LANGUAGES
    language = scene.rng.choice(latin(scene)) if other else "en"
    harmful = scene.answer((True, False))
    found = [
        (asks, thing)
        for asks, thing in safety.pictured(scene.split, language)
        if asks.harmful == harmful
    ]
    asks, thing = scene.rng.choice(found)
    picture, font = draw_text(scene, thing, scene.size(), 36)
    meta = {"language": language, "refuse": harmful, "font": font}
    return asked(picture, asks.question, asks.chosen, **meta)


def talk(scene: Scene) -> Made:
    """A picture of shapes, its description and several questions about it, in any order, as one conversation: every
    turn teaches, and the picture is looked at once."""
    form = scene.rng.choice(("alike", "alike", "place", "two"))
    shape, colour = scene.pair()
    count = 1 if form == "place" else scene.rng.randint(1, MOST if form == "alike" else 3)
    groups = [(count, colour, shape)]
    if form == "two":
        other = [(s, c) for s, c in PAIRS if s != shape and c != colour]
        s, c = scene.rng.choice(other)
        groups.append((scene.rng.randint(1, 3), c, s))
    told = " and ".join(several(*group) for group in groups)
    turns: list[tuple[str, object]] = []
    if form == "place":
        place, side = scene.rng.choice(list(PLACES)), scene.rng.randint(26, 44)
        corners = [at(scene, place, side)]
        told += f" {TOLD_PLACES[place]}"
        turns.append((f"Where is the {shape}?", place))
    else:
        total = sum(n for n, _, _ in groups)
        side = scene.rng.randint(44, 92) if total == 1 else scene.rng.randint(24, 34)
        corners = scene.scatter(total, side)
    picture = sheet((SIDE, SIDE), scene.paper(*(COLOUR_RGB[c] for _, c, _ in groups)))
    things = [(c, s) for n, c, s in groups for _ in range(n)]
    for (c, s), corner in zip(things, corners, strict=True):
        scene.shape(picture, s, c, corner, side)
    for n, c, s in groups:
        turns.append((f"How many {PLURALS[s]} are there?", n))
        turns += in_any_language(scene, s, c) if len(groups) == 1 else _told_apart(s, c)
    turns.append((scene.rng.choice(DESCRIBE), told))
    scene.rng.shuffle(turns)
    return asked_more(scene, asked(picture, *turns[0]), turns[1:])


MAKERS: Makers = {
    "digit": (5, digit),
    "digits": (14, digits),
    "count": (12, count),
    "colour": (10, colour),
    "shape": (7, shape),
    "stamp": (1, stamp),
    "word": (2, word),
    "number": (11, number),
    "where": (13, where),
    "more": (2, more),
    "chart": (10, chart),
    "talk": (16, talk),
    "request": (1, request),
}
"""Task -> (share of the training set, maker). Tests ask one question each."""


def makers_with(album: Album) -> Makers:
    """All makers, or without stamps those that need none."""
    return {task: made for task, made in MAKERS.items() if album or task != "stamp"}


def questions(work: Work) -> Iterator[tuple[str, Sample]]:
    album = stamps.load(work)
    makers = makers_with(album)
    return samples(
        "image_qa", work, makers, album, tests=[task for task in makers if task != "talk"]
    )


def fresh_questions(work: Work) -> Callable[[int], Sample]:
    album = stamps.load(work)
    return fresh("image_qa", work, makers_with(album), album)


# By bytes: hashing so many pictures would cost more than drawing them.
corpus = Corpus(
    "image_qa",
    build=questions,
    steps=against("image_qa", ways=("same bytes",)),
    fresh=fresh_questions,
)
