"""Questions about scenes, bars and letters that are described in plain words. They prepare a language model that reads
only text for what it will be asked about images.

    Scene: a red star on the left and two blue circles.        Where is the star?          -> left
    Scene 1: a red star. Scene 2: a blue circle.               Which scene shows a star?   -> 1
    Bars: red 3, blue 7, green 2.                              Which bar is highest?       -> blue
    Letters: s h i p.                                          What word is this?          -> ship

Descriptions are held out for the test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.synthetic.qa import QA, first_valid
from polyphi_recipe.text.lexicon import COLOURS, NOUNS, SHAPES, lexicon, number_words


def plural(shape: str, n: int) -> str:
    """Return the English name of a shape in the singular or plural for `n`: "crosses" for 3 and "cross"."""
    return shape if n == 1 else f"{shape}es" if shape.endswith("s") else f"{shape}s"


def with_article(noun: str) -> str:
    """Return an English noun with its article: "a star", "an orange star", "an 8"."""
    return f"{'an' if noun[0] in 'aeiou8' else 'a'} {noun}"


def shape_phrase(count: int, colour: str, shape: str) -> str:
    """Return one or more shapes in words: "a red circle", "three blue stars"."""
    if count == 1:
        return with_article(f"{colour} {shape}")
    return f"{number_words(count, 'en')} {colour} {plural(shape, count)}"


DESCRIBE = ("Describe the picture.", "What does the picture show?")
POSITIONS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}


def scene(rng: Random, split: str, *, counting: bool = False) -> QA:
    """Return a question about a scene described in words, as captions and questions of the image corpora are: a frozen
    language model can only answer questions about images that it can answer about text."""
    task = "scene_count" if counting else "scene"
    if not counting and rng.random() < 0.25:
        return _read(rng, split)

    def draw() -> tuple | None:
        groups = rng.choice((1, 1, 2, 2, 3)) if counting else rng.randrange(1, 4)
        shapes, colours = rng.sample(sorted(SHAPES), groups), rng.sample(sorted(COLOURS), groups)
        counts = [rng.randrange(1, 7 if groups == 1 else 5) for _ in range(groups)]
        things = [shape_phrase(*group) for group in zip(counts, colours, shapes, strict=True)]
        caption = " and ".join(things)
        return (caption, counts, colours, shapes) if in_split(split, "scene", caption) else None

    def draw_placed() -> tuple | None:
        (shape, other), (colour, other_colour) = (
            rng.sample(sorted(SHAPES), 2),
            rng.sample(sorted(COLOURS), 2),
        )
        (position, other_position), alone = rng.sample(sorted(POSITIONS), 2), rng.random() < 0.5
        caption = f"{shape_phrase(1, colour, shape)} {POSITIONS[position]}"
        if not alone:
            caption = (
                f"{caption} and {shape_phrase(1, other_colour, other)} {POSITIONS[other_position]}"
            )
        return (caption, shape, position) if in_split(split, "scene", caption) else None

    if not counting and rng.random() < 0.25:
        caption, shape, position = first_valid(draw_placed)
        question = rng.choice((f"Where is the {shape}?", f"On which side is the {shape}?"))
        return QA(task, f"Scene: {caption}.\n{question}", position)
    caption, counts, colours, shapes = first_valid(draw)
    if not counting and rng.random() < 0.2:
        return QA(task, f"Scene: {caption}.\n{rng.choice(DESCRIBE)}", caption)
    at = rng.randrange(len(counts))
    n, colour, shape = counts[at], colours[at], shapes[at]
    many = plural(shape, 2)
    if counting:
        question = rng.choice(
            (
                f"How many {many} are there?",
                f"Count the {many}.",
                f"How many {colour} {many} are there?",
            )
        )
        return QA(task, f"Scene: {caption}.\n{question}", str(n))
    if len(set(counts)) > 1 and rng.random() < 0.3:
        most = colours[counts.index(max(counts))] if counts.count(max(counts)) == 1 else ""
        few = rng.choice([c for c, k in zip(colours, counts, strict=True) if k < max(counts)])
        if most:
            one, two = rng.sample([most, few], 2)
            return QA(
                task, f"Scene: {caption}.\nWhich colour is there more of, {one} or {two}?", most
            )
    question_type = rng.randrange(3)
    if question_type == 0:
        alone = ("What colour is this?", "Which colour do you see?", "Name the colour.")
        question = rng.choice(alone) if len(counts) == 1 else f"What colour is the {shape}?"
        return QA(task, f"Scene: {caption}.\n{question}", colour)
    if question_type == 1:
        alone = ("What shape is this?", "Which shape do you see?", "Name the shape.")
        question = rng.choice(alone) if len(counts) == 1 else f"Which shape is {colour}?"
        return QA(task, f"Scene: {caption}.\n{question}", shape)
    truth = rng.random() < 0.5
    if not truth:
        colour = rng.choice(
            [c for c in (sorted(COLOURS) if rng.random() < 0.5 else colours) if c != colour]
            or [c for c in sorted(COLOURS) if c != colour]
        )
    return QA(
        task,
        f"Scene: {caption}.\nIs there {shape_phrase(1, colour, shape)}?",
        "yes" if truth else "no",
    )


def _read(rng: Random, split: str) -> QA:
    """Return a question about text or digits in a scene."""

    def draw() -> tuple | None:
        contents = ("digit", "digits", "digits", "number", "word")
        # There are only ten single digits: none is held out.
        content = rng.choice(contents if split == "train" else contents[1:])
        if content == "word":
            text = rng.choice(sorted(lexicon()))
        else:
            text = "".join(
                rng.choices("0123456789", k=1 if content == "digit" else rng.randint(2, 4))
            )
        return (content, text) if len(text) < 2 or in_split(split, "read", text) else None

    content, text = first_valid(draw)
    if rng.random() < 0.2:
        return QA(
            "scene",
            f"Scene: the {content} {text}.\n{rng.choice(DESCRIBE)}",
            f"the {content} {text}",
        )
    questions = {
        "digit": ("What digit is this?", "Which digit do you see?", "Read the digit."),
        "digits": ("What digits do you see?", "Which digits are these?", "Read the digits."),
        "number": ("What number is this?", "Which number do you see?", "Read the number."),
        "word": ("What word is this?", "Which word do you see?", "Read the word."),
    }[content]
    return QA("scene", f"Scene: the {content} {text}.\n{rng.choice(questions)}", text)


MIDDLE = "in the middle"
WAYS = {
    "left": ("on the right", "on the left"),
    "right": ("on the left", "on the right"),
    "up": ("at the bottom", "at the top"),
    "down": ("at the top", "at the bottom"),
}
"""Direction of a motion -> the first and the last place."""


ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Thing:
    """A thing that a scene or an image shows: its caption, and its names by kind ("shape", "colour", "digit",
    "thing")."""

    caption: str
    names: Mapping[str, str]

    @classmethod
    def shape(cls, shape: str, colour: str) -> "Thing":
        return cls(shape_phrase(1, colour, shape), {"shape": shape, "colour": colour})

    @classmethod
    def digit(cls, value: int | str) -> "Thing":
        return cls(f"the digit {value}", {"digit": str(value)})

    @classmethod
    def noun(cls, noun: str) -> "Thing":
        return cls(with_article(noun), {"thing": noun})


def noun_phrase(kind: str, name: str) -> str:
    """Return a thing by one of its names: "a star", "something red"."""
    return f"something {name}" if kind == "colour" else with_article(name)


def list_captions(things: Sequence[Thing], what: str = "Scene") -> str:
    """Return the captions of things with their numbers: "Scene 1: a red star. Scene 2: a blue circle."."""
    return " ".join(f"{what} {i}: {thing.caption}." for i, thing in enumerate(things, 1))


def questions(things: Sequence[Thing], what: str = "scene") -> list[tuple[str, str]]:
    """Return questions about each of two or more things and about all of them, with their answers."""
    turns = [
        (f"What does the {ordinal} {what} show?", thing.caption)
        for ordinal, thing in zip(ORDINALS, things, strict=False)
    ]
    for kind in things[0].names:
        names = [thing.names[kind] for thing in things]
        if len(names) == 2:
            turns.append((f"Is it the same {kind}?", "yes" if names[0] == names[1] else "no"))
        for name in dict.fromkeys(names):
            thing, count = noun_phrase(kind, name), names.count(name)
            if count == 1:
                turns.append((f"Which {what} shows {thing}?", str(names.index(name) + 1)))
            if kind == "shape" and len(names) == 3:
                turns.append((f"How many {what}s show {thing}?", str(count)))
    return turns


def scenes(rng: Random, split: str) -> QA:
    """Return a question about two or three scenes: which one shows a thing, whether they show the same, how many show
    it, which way it moves."""
    draw = rng.choices((_which, _same, _how_many, _motion), (25, 15, 20, 40))[0]

    def valid() -> tuple | None:
        things, question, answer = draw(rng)
        text = list_captions(things)
        return (text, question, answer) if in_split(split, "scenes", text) else None

    text, question, answer = first_valid(valid)
    return QA("scenes", f"{text}\n{question}", answer)


def _which(rng: Random) -> tuple[list[Thing], str, str]:
    count, kind = rng.choice((2, 3, 3)), rng.choice(("shape", "colour", "digit", "thing"))
    shapes, colours = rng.sample(sorted(SHAPES), count), rng.sample(sorted(COLOURS), count)
    if kind == "digit":
        things = [Thing.digit(digit) for digit in rng.sample(range(10), count)]
    elif kind == "thing":
        things = [Thing.noun(noun) for noun in rng.sample(sorted(NOUNS), count)]
    else:
        things = [Thing.shape(*both) for both in zip(shapes, colours, strict=True)]
    at = rng.randrange(count)
    return things, f"Which scene shows {noun_phrase(kind, things[at].names[kind])}?", str(at + 1)


def _same(rng: Random) -> tuple[list[Thing], str, str]:
    kind, is_same = rng.choice(("shape", "colour", "digit")), rng.random() < 0.5
    if kind == "digit":
        first, other = rng.sample(range(10), 2)
        things = [Thing.digit(first), Thing.digit(first if is_same else other)]
    else:
        shapes, colours = rng.choices(sorted(SHAPES), k=2), rng.choices(sorted(COLOURS), k=2)
        chosen, names = (shapes, SHAPES) if kind == "shape" else (colours, COLOURS)
        chosen[1] = (
            chosen[0] if is_same else rng.choice([n for n in sorted(names) if n != chosen[0]])
        )
        things = [Thing.shape(*both) for both in zip(shapes, colours, strict=True)]
    return things, f"Is it the same {kind}?", "yes" if is_same else "no"


def _how_many(rng: Random) -> tuple[list[Thing], str, str]:
    shape, count = rng.choice(sorted(SHAPES)), rng.randint(1, 3)
    others = [s for s in sorted(SHAPES) if s != shape]
    shapes = [shape] * count + [rng.choice(others) for _ in range(3 - count)]
    rng.shuffle(shapes)
    things = [Thing.shape(s, rng.choice(sorted(COLOURS))) for s in shapes]
    return things, f"How many scenes show {with_article(shape)}?", str(count)


def _motion(rng: Random) -> tuple[list[Thing], str, str]:
    way, shape, colour = (rng.choice(sorted(words)) for words in (WAYS, SHAPES, COLOURS))
    thing, (first, last) = shape_phrase(1, colour, shape), WAYS[way]
    places = [Thing(f"{thing} {place}", {}) for place in (first, MIDDLE, last)]
    question = rng.choice((f"Which way does the {shape} move?", f"Where does the {shape} go?"))
    return places, question, way


def bars(rng: Random, split: str) -> QA:
    """Return a question for the highest, the lowest or the value of one of three or four bars."""

    def draw() -> tuple | None:
        labels = rng.sample(sorted(COLOURS), rng.choice((3, 4)))
        values = dict(zip(labels, rng.sample(range(1, 10), len(labels)), strict=True))
        text = ", ".join(f"{label} {value}" for label, value in values.items())
        return (text, values) if in_split(split, "bars", text) else None

    text, values = first_valid(draw)
    label, kind = rng.choice(list(values)), rng.choice(("most", "least", "value"))
    if kind == "value":
        question = rng.choice(("What is the value of the {} bar?", "What number has the {} bar?"))
        return QA("bars", f"Bars: {text}.\n{question.format(label)}", str(values[label]))
    words = ("highest", "longest") if kind == "most" else ("lowest", "shortest")
    chosen = (max if kind == "most" else min)(values, key=values.__getitem__)
    return QA("bars", f"Bars: {text}.\nWhich bar is {rng.choice(words)}?", chosen)


def letters(rng: Random, split: str, languages: Sequence[str]) -> QA:
    """Return a question for the word of some letters. Some letters are written together; which ones is held out, not
    the word: a model whose tokens are words knows no other word of some letters."""

    def draw() -> tuple | None:
        language = "en" if rng.random() < 0.6 else rng.choice(languages)
        word = lexicon()[rng.choice(sorted(lexicon()))][language]
        apart = "".join(c + " " * (rng.random() < 0.8) for c in word).strip()
        return (word, language, apart) if in_split(split, "letters", apart) else None

    word, language, apart = first_valid(draw)
    question = rng.choice(("What word is this?", "Which word do you see?", "Read the word."))
    return QA("letters", f"Letters: {apart}.\n{question}", word, language)
