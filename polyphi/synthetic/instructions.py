"""Short questions with short answers, a family per skill, over the vocabulary that vision and speech share.

>>> ask = families(work, "train")["number_words"]
>>> ask(Random(0))
Ask("number_words", "Write 42 in German words.", "zweiundvierzig", "de", ...)

A family draws from its own side of the split: what a question is about (a number in a language, a word and its target
language, a pair of operands) is train's or test's, whatever words ask for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from polyphi.curate.corpus import Work
from polyphi.curate.text import fill, interleave, origin, rng_for, sentences, side
from polyphi.data.shards import Sample
from polyphi.messages import Message
from polyphi.text.lexicon import (
    COLOURS,
    LANGUAGES,
    NOUNS,
    SHAPES,
    digit_words,
    lexicon,
    number_words,
)


@dataclass(frozen=True)
class Ask:
    """A question, its answer, and the language of the answer; `to` where it is a translation."""

    task: str
    question: str
    answer: str
    language: str = "en"
    to: str = ""

    def sample(self, id: str, source: str = "polyphi") -> Sample:
        meta = {
            "task": self.task,
            "language": self.language,
            **({"to": self.to} if self.to else {}),
        }
        return Sample(
            id,
            (Message.user(self.question), Message.assistant(self.answer)),
            meta=meta,
            **origin(source),
        )


Family = Callable[[Random], Ask]

SHARES = {
    "number_words": 15,
    "translate_words": 3,
    "translate_numbers": 9,
    "copy": 9,
    "count": 1,
    "scene_count": 10,
    "scene": 17,
    "arithmetic": 16,
    "compare": 10,
    "yes_no": 4,
    "language_id": 4,
    "sort": 4,
    "position": 3,
}
"""Family -> its share of the training rows; test rows are equal. More sums are in the corpus `sums`."""

ENGLISH_SHARE = 0.4  # of the questions that any language can be asked in
NUMBER_WORDS_SHARE = 0.2  # of the texts to copy in training


def held_number(split: str, n: int, words: str) -> bool:
    """Whether the number and its words (not their language: "noventa" is said in two) belong to `split`; numbers up to
    twenty are always train's."""
    return split == "train" if n <= 20 else side(split, "number", n, words)


def held_sum(split: str, a: int, sign: str, b: int) -> bool:
    """Whether a sum belongs to `split`; those of two single digits are always train's, worked sums need them."""
    pair = sorted((a, b)) if sign == "+" else (a, b)
    return split == "train" if max(a, b) < 10 else side(split, "sum", sign, *pair)


def a_language(rng: Random, languages: Sequence[str] = tuple(LANGUAGES)) -> str:
    """One of these, English most often."""
    return "en" if rng.random() < ENGLISH_SHARE else rng.choice(languages)


def two_languages(rng: Random, languages: Sequence[str] = tuple(LANGUAGES)) -> list[str]:
    """(source, target), unlike; English is mostly one of them."""
    others = rng.sample([code for code in languages if code != "en"], 2)
    pair = ["en", others[0]] if rng.random() < 0.7 else others
    rng.shuffle(pair)
    return pair


def until(draw: Callable[[], tuple | None]) -> tuple:
    """The first draw that isn't None."""
    while (found := draw()) is None:
        pass
    return found


def families(work: Work, split: str) -> dict[str, Family]:
    """Family name -> a function that draws one question of this split."""
    codes = list(LANGUAGES)
    speech = {code: _sentences(code, work, split) for code in codes}

    def number(rng: Random) -> Ask:
        def draw() -> tuple | None:
            n, language = rng.randrange(100), a_language(rng)
            return (n, language) if held_number(split, n, number_words(n, language)) else None

        def draw_digits() -> tuple | None:
            digits = "".join(rng.choices("0123456789", k=rng.randrange(2, 6)))
            return (digits, a_language(rng)) if side(split, "digits", digits) else None

        if rng.random() < 0.4:
            digits, language = until(draw_digits)
            return Ask("number_words", f"Write in digits: {digit_words(digits, language)}", digits)
        n, language = until(draw)
        words = number_words(n, language)
        if rng.random() < 0.5:
            asked = rng.choice(("Write {} in {} words.", "What is {} in {}?")).format(
                n, LANGUAGES[language]
            )
            return Ask("number_words", asked, words, language)
        asked = rng.choice(("Write in digits: {}", "Which number is this? {}")).format(words)
        return Ask("number_words", asked, str(n), "en")

    def translate(rng: Random) -> Ask:
        def draw() -> tuple | None:
            word, (source, target) = rng.choice(_CONCEPTS), two_languages(rng, work.languages)
            # The word, not its language, is held out: "orange" is the same question in three languages.
            return (
                (word, source, target)
                if side(split, "word", lexicon()[word][source], target)
                else None
            )

        word, source, target = until(draw)
        return _translation(
            "translate_words", lexicon()[word][source], lexicon()[word][target], target
        )

    def translate_numbers(rng: Random) -> Ask:
        source, target = two_languages(rng)

        def draw() -> tuple | None:
            if rng.random() < 0.4:
                n = rng.randrange(100)
                right = held_number(split, n, number_words(n, source))
                return (number_words(n, source), number_words(n, target)) if right else None
            digits = "".join(rng.choices("0123456789", k=rng.randrange(2, 5)))
            right = side(split, "digits", digits)
            return (digit_words(digits, source), digit_words(digits, target)) if right else None

        text, answer = until(draw)
        return _translation("translate_numbers", text, answer, target)

    def copy(rng: Random) -> Ask:
        text, language = copied(split, rng, work.languages)
        return Ask("copy", f"{rng.choice(('Repeat', 'Copy'))}: {text}", text, language)

    def count(rng: Random) -> Ask:
        def draw() -> tuple | None:
            if rng.random() < 0.5:
                few, between = rng.sample("0123456789", 3), ""
            else:
                few, between = rng.sample(_SHORT_NOUNS, 3), " "
            items, what = rng.choices(few, k=rng.randrange(3, 7)), rng.choice(few)
            text = between.join(items)
            return (text, what, items.count(what)) if side(split, "count", text) else None

        text, what, n = until(draw)
        return Ask("count", f"How many times is {what} in {text}?", str(n))

    def scene_count(rng: Random) -> Ask:
        return _scene(rng, split, counting=True)

    def scene(rng: Random) -> Ask:
        return _scene(rng, split, counting=False)

    def arithmetic(rng: Random) -> Ask:
        def draw() -> tuple | None:
            a, b, sign = rng.randrange(1, 100), rng.randrange(1, 20), rng.choice("+-")
            value = a + b if sign == "+" else a - b
            return (a, sign, b, value) if 0 <= value <= 99 and held_sum(split, a, sign, b) else None

        a, sign, b, value = until(draw)
        language = a_language(rng, work.languages)
        told = f"{a} {sign} {b}"
        if language == "en" and rng.random() < 0.3:
            told = f"{a} {'plus' if sign == '+' else 'minus'} {b}"
        return Ask("arithmetic", _SUM[language].format(told), str(value), language)

    def pair(rng: Random) -> Callable[[], tuple | None]:
        def draw() -> tuple | None:
            a, b = rng.sample(range(100), 2)
            return (a, b) if side(split, "compare", *sorted((a, b))) else None

        return draw

    def compare(rng: Random) -> Ask:
        a, b = until(pair(rng))
        kind = rng.choice(("larger", "smaller"))
        answer = max(a, b) if kind == "larger" else min(a, b)
        return Ask("compare", f"Which is {kind}, {a} or {b}?", str(answer))

    def yes_no(rng: Random) -> Ask:
        if rng.random() < 0.3:
            a = rng.choice([n for n in range(100) if side(split, "parity", n, percent=20)])
            kind = rng.choice(("even", "odd"))
            return Ask(
                "yes_no", f"Is {a} {kind}?", "yes" if (a % 2 == 0) == (kind == "even") else "no"
            )
        a, b = until(pair(rng))
        kind = rng.choice(("larger", "smaller"))
        return Ask(
            "yes_no", f"Is {a} {kind} than {b}?", "yes" if (a > b) == (kind == "larger") else "no"
        )

    def language_id(rng: Random) -> Ask:
        language = rng.choice(codes)
        return Ask(
            "language_id",
            f"Which language is this? {rng.choice(speech[language])}",
            LANGUAGES[language],
        )

    def sort(rng: Random) -> Ask:
        def draw() -> tuple | None:
            digits = rng.sample("0123456789", rng.randrange(3, 5))
            return (digits,) if side(split, "sort", *digits) else None

        (digits,) = until(draw)
        if rng.random() < 0.3:
            kind = rng.choice(("largest", "smallest"))
            return Ask(
                "sort",
                f"Which is the {kind}? {''.join(digits)}",
                (max if kind == "largest" else min)(digits),
            )
        return Ask("sort", f"Sort from small to large: {''.join(digits)}", "".join(sorted(digits)))

    def position(rng: Random) -> Ask:
        def draw() -> tuple | None:
            words = rng.sample(_CONCEPTS, 3)
            return (words,) if side(split, "position", *words) else None

        (words,) = until(draw)
        place = rng.choice(("first", "second", "last"))
        answer = words[{"first": 0, "second": 1, "last": -1}[place]]
        return Ask("position", f"Which word is {place}? {' '.join(words)}", answer)

    made = [
        number,
        translate,
        translate_numbers,
        copy,
        count,
        scene_count,
        scene,
        arithmetic,
        compare,
        yes_no,
    ]
    return dict(zip(SHARES, [*made, language_id, sort, position], strict=True))


_CONCEPTS = [*COLOURS, *SHAPES, *(n for n in NOUNS if n not in COLOURS)]
_SHORT_NOUNS = (
    "cat",
    "dog",
    "cow",
    "pig",
    "bird",
    "fish",
    "car",
    "sun",
    "tree",
    "book",
    "hat",
    "key",
)
_SUM = {
    "en": "What is {}?",
    "fr": "Combien font {} ?",
    "de": "Was ist {}?",
    "it": "Quanto fa {}?",
    "pt": "Quanto é {}?",
    "es": "¿Cuánto es {}?",
    "zh": "{} 等于多少？",
    "ja": "{} はいくつですか？",
}


def copied(split: str, rng: Random, languages: Sequence[str], longest: int = 6) -> tuple[str, str]:
    """(text, language) to copy: two and more digits written together, or words of a language; in training also number
    words of all languages, whose tokens a model copies when it transcribes."""
    language = a_language(rng, languages)
    number_text = split == "train" and rng.random() < NUMBER_WORDS_SHARE
    if number_text:
        language = rng.choice(list(LANGUAGES))

    def draw() -> tuple | None:
        if number_text:
            count = rng.randint(1, 4)
            text = " ".join(number_words(rng.randrange(100), language) for _ in range(count))
        elif rng.random() < 0.5:
            text = "".join(rng.choices("0123456789", k=rng.randint(2, longest + 2)))
        else:
            words = [w[language] for w in lexicon().values()]
            text = " ".join(rng.choices(words, k=rng.randint(2, longest)))
        return (text,) if side(split, "copy", text) else None

    (text,) = until(draw)
    return text, language


def _translation(task: str, text: str, answer: str, target: str) -> Ask:
    return Ask(task, f"Translate to {LANGUAGES[target]}: {text}", answer, target, target)


def _sentences(language: str, work: Work, split: str) -> list[str]:
    rng = Random(f"{work.seed}:sentences:{language}:{split}")
    found = list(islice(sentences(language, work, split, rng, 50), 300))
    while len(found) < 60:  # without packages: words of the lexicon
        words = " ".join(rng.sample([w[language] for w in lexicon().values()], 3))
        if side(split, "sentence", words):
            found.append(words)
    return found


def plural(shape: str, n: int) -> str:
    """The English name of `n` of a shape: "3 crosses" wants "crosses"."""
    return shape if n == 1 else f"{shape}es" if shape.endswith("s") else f"{shape}s"


def several(count: int, colour: str, shape: str) -> str:
    """One or more shapes in words: "a red circle", "three blue stars"."""
    if count == 1:
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
    return f"{number_words(count, 'en')} {colour} {plural(shape, count)}"


DESCRIBE = ("Describe the picture.", "What does the picture show?")
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}


def _scene(rng: Random, split: str, counting: bool) -> Ask:
    """A scene told as captions tell pictures, and one of the questions that are asked about pictures: a frozen language
    model can only say of a picture what it has learned to say of words."""
    task = "scene_count" if counting else "scene"
    if not counting and rng.random() < 0.25:
        return _read(rng, split)

    def draw() -> tuple | None:
        groups = rng.choice((1, 1, 2, 2, 3)) if counting else rng.randrange(1, 4)
        shapes, colours = rng.sample(sorted(SHAPES), groups), rng.sample(sorted(COLOURS), groups)
        counts = [rng.randrange(1, 7 if groups == 1 else 5) for _ in range(groups)]
        things = [several(*group) for group in zip(counts, colours, shapes, strict=True)]
        told = " and ".join(things)
        return (told, counts, colours, shapes) if side(split, "scene", told) else None

    def placed() -> tuple | None:
        (shape, other), (colour, tint) = (
            rng.sample(sorted(SHAPES), 2),
            rng.sample(sorted(COLOURS), 2),
        )
        (place, away), alone = rng.sample(sorted(PLACES), 2), rng.random() < 0.5
        told = f"{several(1, colour, shape)} {PLACES[place]}"
        if not alone:
            told = f"{told} and {several(1, tint, other)} {PLACES[away]}"
        return (told, shape, place) if side(split, "scene", told) else None

    if not counting and rng.random() < 0.25:
        told, shape, place = until(placed)
        asked = rng.choice((f"Where is the {shape}?", f"On which side is the {shape}?"))
        return Ask(task, f"Scene: {told}.\n{asked}", place)
    told, counts, colours, shapes = until(draw)
    if not counting and rng.random() < 0.2:
        return Ask(task, f"Scene: {told}.\n{rng.choice(DESCRIBE)}", told)
    at = rng.randrange(len(counts))
    n, colour, shape = counts[at], colours[at], shapes[at]
    many = plural(shape, 2)
    if counting:
        asked = rng.choice(
            (
                f"How many {many} are there?",
                f"Count the {many}.",
                f"How many {colour} {many} are there?",
            )
        )
        return Ask(task, f"Scene: {told}.\n{asked}", str(n))
    if len(set(counts)) > 1 and rng.random() < 0.3:
        most = colours[counts.index(max(counts))] if counts.count(max(counts)) == 1 else ""
        few = rng.choice([c for c, k in zip(colours, counts, strict=True) if k < max(counts)])
        if most:
            one, two = rng.sample([most, few], 2)
            return Ask(
                task, f"Scene: {told}.\nWhich colour is there more of, {one} or {two}?", most
            )
    kind = rng.randrange(3)
    if kind == 0:
        alone = ("What colour is this?", "Which colour do you see?", "Name the colour.")
        asked = rng.choice(alone) if len(counts) == 1 else f"What colour is the {shape}?"
        return Ask(task, f"Scene: {told}.\n{asked}", colour)
    if kind == 1:
        alone = ("What shape is this?", "Which shape do you see?", "Name the shape.")
        asked = rng.choice(alone) if len(counts) == 1 else f"Which shape is {colour}?"
        return Ask(task, f"Scene: {told}.\n{asked}", shape)
    truth = rng.random() < 0.5
    if not truth:
        colour = rng.choice(
            [c for c in (sorted(COLOURS) if rng.random() < 0.5 else colours) if c != colour]
            or [c for c in sorted(COLOURS) if c != colour]
        )
    return Ask(
        task, f"Scene: {told}.\nIs there {several(1, colour, shape)}?", "yes" if truth else "no"
    )


def _read(rng: Random, split: str) -> Ask:
    """What is written in a scene."""

    def draw() -> tuple | None:
        kinds = ("digit", "digits", "digits", "number", "word")
        kind = rng.choice(kinds if split == "train" else kinds[1:])  # ten digits can't be held out
        if kind == "word":
            text = rng.choice(sorted(lexicon()))
        else:
            text = "".join(rng.choices("0123456789", k=1 if kind == "digit" else rng.randint(2, 4)))
        return (kind, text) if len(text) < 2 or side(split, "read", text) else None

    kind, text = until(draw)
    if rng.random() < 0.2:
        return Ask(
            "scene", f"Scene: the {kind} {text}.\n{rng.choice(DESCRIBE)}", f"the {kind} {text}"
        )
    asked = {
        "digit": ("What digit is this?", "Which digit do you see?", "Read the digit."),
        "digits": ("What digits do you see?", "Which digits are these?", "Read the digits."),
        "number": ("What number is this?", "Which number do you see?", "Read the number."),
        "word": ("What word is this?", "Which word do you see?", "Read the word."),
    }[kind]
    return Ask("scene", f"Scene: the {kind} {text}.\n{rng.choice(asked)}", text)


def any_family(work: Work) -> Family:
    """A function that draws one training question, of the families in the proportions of `SHARES`."""
    draw = families(work, "train")
    names, weights = list(SHARES), list(SHARES.values())
    return lambda rng: draw[rng.choices(names, weights)[0]](rng)


def training(work: Work, rng: Random) -> Iterator[Ask]:
    """Endless training questions in the proportions of `SHARES`."""
    draw = any_family(work)
    while True:
        yield draw(rng)


def rows(
    corpus: str, work: Work, draw: Callable[[Work, str], Family]
) -> Iterator[tuple[str, Sample]]:
    """(split, row) of every split, each row drawn by `draw(work, split)`: `Corpus.build`."""

    def make(split: str, rng: Random) -> Iterator[Sample]:
        family = draw(work, split)
        for i in range(work.rows[split]):
            yield family(rng).sample(f"{corpus}-{split}-{i:06d}")

    yield from fill(work, corpus, make)


def fresh(corpus: str, work: Work, draw: Family) -> Callable[[int], Sample]:
    """Training samples by number, each drawn by a generator of that number: `Corpus.fresh`."""
    return lambda n: draw(rng_for(work, f"{corpus}:fresh:{n}")).sample(f"{corpus}-fresh-{n:06d}")


def testing(work: Work, rng: Random, rows: int) -> Iterator[Ask]:
    """About `rows` held-out questions, the same number of each family (or as many as there are), in turn, none twice,
    answers balanced."""
    draw = families(work, "test")
    each = -(-rows // len(draw))
    picked = [balanced((draw[name](rng) for _ in range(12 * each + 60)), each) for name in draw]
    yield from interleave([iter(asks) for asks in picked])


def balanced(candidates: Iterator[Ask], wanted: int) -> list[Ask]:
    """`wanted` of the candidates (or as many as there are), questions unlike, each answer as often as any other."""
    groups: dict[str, list[Ask]] = {}
    seen: set[str] = set()
    for ask in candidates:
        if ask.question not in seen:
            seen.add(ask.question)
            groups.setdefault(ask.answer, []).append(ask)
    picked: list[Ask] = []
    while groups and len(picked) < wanted:
        for answer in list(groups):
            picked.append(groups[answer].pop())
            if not groups[answer]:
                del groups[answer]
    return picked[:wanted]
