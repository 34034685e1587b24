"""Short questions with short answers, one family per skill, over the vocabulary shared with vision and speech.

>>> draw = families(work, "train")["number_words"]
>>> draw(Random(0))
QA("number_words", "Write 42 in German words.", "zweiundvierzig", "de", ...)

The splits differ in content: the subject of a question (a number in a language, a word and its target language, a pair
of operands) belongs to one split, in every wording.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random

from polyphi.data.shards import Sample
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw.real_text import fill, in_split, interleave, rng_for, sentences
from polyphi_recipe.synthetic import described_scenes
from polyphi_recipe.synthetic.number_questions import SUMS
from polyphi_recipe.synthetic.qa import QA, first_valid
from polyphi_recipe.text.lexicon import (
    COLOURS,
    LANGUAGES,
    NOUNS,
    SHAPES,
    digit_words,
    lexicon,
    number_words,
)

Family = Callable[[Random], QA]

SHARES = {
    "number_words": 14,
    "translate_words": 5,
    "translate_numbers": 8,
    "copy": 12,
    "count": 1,
    "scene_count": 9,
    "scene": 17,
    "arithmetic": 16,
    "compare": 11,
    "yes_no": 2,
    "language_id": 4,
    "sort": 3,
    "position": 1,
    "scenes": 7,
    "bars": 9,
    "letters": 10,
    "topic": 1,
    "length": 1,
}
"""Family -> its share of the training rows; test rows are distributed equally. The corpus `sums` has more sums."""

ENGLISH_SHARE = 0.4  # of the questions that exist in all languages
NUMBER_WORDS_SHARE = 0.2  # of the texts to copy in training
NUMBERS = "numbers"
TOPICS = {
    "animals": list(NOUNS)[: list(NOUNS).index("apple")],
    "food": ["apple", "banana", "bread", "egg", "water"],
    "vehicles": ["car", "train", "boat", "plane", "bicycle"],
    "colours": list(COLOURS),
    "shapes": list(SHAPES),
    NUMBERS: [],
}
"""Topic of a list -> English words of the lexicon."""
SUMMARIZE = "Summarize the text in one sentence."


def topic_words(topic: str, language: str, rng: Random) -> list[str]:
    """Return four words about a topic."""
    if topic == NUMBERS:
        return [number_words(rng.randrange(100), language) for _ in range(4)]
    words_by_name = {**COLOURS, **SHAPES, **NOUNS}
    return [words_by_name[word][language] for word in rng.sample(TOPICS[topic], 4)]


def number_in_split(split: str, n: int, words: str) -> bool:
    """Return whether a number and its words belong to `split`, in any language ("noventa" exists in two); numbers up to
    twenty are always in train."""
    return split == "train" if n <= 20 else in_split(split, "number", n, words)


def sum_in_split(split: str, a: int, sign: str, b: int) -> bool:
    """Return whether a sum belongs to `split`; sums of two single digits are always in train: worked sums need them."""
    pair = sorted((a, b)) if sign == "+" else (a, b)
    return split == "train" if max(a, b) < 10 else in_split(split, "sum", sign, *pair)


def random_language(rng: Random, languages: Sequence[str] = tuple(LANGUAGES)) -> str:
    """Return one of these languages, English most often."""
    return "en" if rng.random() < ENGLISH_SHARE else rng.choice(languages)


def language_pair(rng: Random, languages: Sequence[str] = tuple(LANGUAGES)) -> list[str]:
    """Return two different languages (source, target); in 70 % of the pairs one is English."""
    others = rng.sample([code for code in languages if code != "en"], 2)
    pair = ["en", others[0]] if rng.random() < 0.7 else others
    rng.shuffle(pair)
    return pair


def families(work: Work, split: str) -> dict[str, Family]:
    """Return family name -> a function that draws one question of this split."""
    codes = list(LANGUAGES)
    speech = {code: _sentences(code, work, split) for code in codes}

    def number(rng: Random) -> QA:
        def draw() -> tuple | None:
            n, language = rng.randrange(100), random_language(rng)
            return (n, language) if number_in_split(split, n, number_words(n, language)) else None

        def draw_digits() -> tuple | None:
            digits = "".join(rng.choices("0123456789", k=rng.randrange(2, 6)))
            return (digits, random_language(rng)) if in_split(split, "digits", digits) else None

        if rng.random() < 0.4:
            digits, language = first_valid(draw_digits)
            return QA("number_words", f"Write in digits: {digit_words(digits, language)}", digits)
        n, language = first_valid(draw)
        words = number_words(n, language)
        if rng.random() < 0.5:
            question = rng.choice(("Write {} in {} words.", "What is {} in {}?")).format(
                n, LANGUAGES[language]
            )
            return QA("number_words", question, words, language)
        question = rng.choice(("Write in digits: {}", "Which number is this? {}")).format(words)
        return QA("number_words", question, str(n), "en")

    def translate(rng: Random) -> QA:
        def draw() -> tuple | None:
            word, (source, target) = rng.choice(_CONCEPTS), language_pair(rng, work.languages)
            # The word is held out without its language: "orange" is the same question in three languages.
            return (
                (word, source, target)
                if in_split(split, "word", lexicon()[word][source], target)
                else None
            )

        word, source, target = first_valid(draw)
        return _translation(
            "translate_words", lexicon()[word][source], lexicon()[word][target], target
        )

    def translate_numbers(rng: Random) -> QA:
        source, target = language_pair(rng)

        def draw() -> tuple | None:
            if rng.random() < 0.4:
                n = rng.randrange(100)
                belongs = number_in_split(split, n, number_words(n, source))
                return (number_words(n, source), number_words(n, target)) if belongs else None
            digits = "".join(rng.choices("0123456789", k=rng.randrange(2, 5)))
            belongs = in_split(split, "digits", digits)
            return (digit_words(digits, source), digit_words(digits, target)) if belongs else None

        text, answer = first_valid(draw)
        return _translation("translate_numbers", text, answer, target)

    def copy(rng: Random) -> QA:
        text, language = copy_text(split, rng, work.languages)
        return QA("copy", f"{rng.choice(('Repeat', 'Copy'))}: {text}", text, language)

    def count(rng: Random) -> QA:
        def draw() -> tuple | None:
            if rng.random() < 0.5:
                few, between = rng.sample("0123456789", 3), ""
            else:
                few, between = rng.sample(_SHORT_NOUNS, 3), " "
            items, what = rng.choices(few, k=rng.randrange(3, 7)), rng.choice(few)
            text = between.join(items)
            return (text, what, items.count(what)) if in_split(split, "count", text) else None

        text, what, n = first_valid(draw)
        return QA("count", f"How many times is {what} in {text}?", str(n))

    def arithmetic(rng: Random) -> QA:
        def draw() -> tuple | None:
            a, b, sign = rng.randrange(1, 100), rng.randrange(1, 20), rng.choice("+-")
            value = a + b if sign == "+" else a - b
            valid = 0 <= value <= 99 and sum_in_split(split, a, sign, b)
            return (a, sign, b, value) if valid else None

        a, sign, b, value = first_valid(draw)
        language = random_language(rng, work.languages)
        expression = f"{a} {sign} {b}"
        if language == "en" and rng.random() < 0.3:
            expression = f"{a} {'plus' if sign == '+' else 'minus'} {b}"
        return QA("arithmetic", SUMS[language][0].format(expression), str(value), language)

    def pair(rng: Random) -> Callable[[], tuple | None]:
        def draw() -> tuple | None:
            a, b = rng.sample(range(100), 2)
            return (a, b) if in_split(split, "compare", *sorted((a, b))) else None

        return draw

    def compare(rng: Random) -> QA:
        a, b = first_valid(pair(rng))
        relation = rng.choice(("larger", "smaller"))
        answer = max(a, b) if relation == "larger" else min(a, b)
        return QA("compare", f"Which is {relation}, {a} or {b}?", str(answer))

    def yes_no(rng: Random) -> QA:
        if rng.random() < 0.3:
            a = rng.choice([n for n in range(100) if in_split(split, "parity", n, percent=20)])
            parity = rng.choice(("even", "odd"))
            truth = (a % 2 == 0) == (parity == "even")
            return QA("yes_no", f"Is {a} {parity}?", "yes" if truth else "no")
        a, b = first_valid(pair(rng))
        relation = rng.choice(("larger", "smaller"))
        truth = (a > b) == (relation == "larger")
        return QA("yes_no", f"Is {a} {relation} than {b}?", "yes" if truth else "no")

    def language_id(rng: Random) -> QA:
        language = rng.choice(codes)
        return QA(
            "language_id",
            f"Which language is this? {rng.choice(speech[language])}",
            LANGUAGES[language],
        )

    def sort(rng: Random) -> QA:
        def draw() -> tuple | None:
            digits = rng.sample("0123456789", rng.randrange(3, 5))
            return (digits,) if in_split(split, "sort", *digits) else None

        (digits,) = first_valid(draw)
        if rng.random() < 0.3:
            superlative = rng.choice(("largest", "smallest"))
            return QA(
                "sort",
                f"Which is the {superlative}? {''.join(digits)}",
                (max if superlative == "largest" else min)(digits),
            )
        return QA("sort", f"Sort from small to large: {''.join(digits)}", "".join(sorted(digits)))

    def position(rng: Random) -> QA:
        def draw() -> tuple | None:
            words = rng.sample(_CONCEPTS, 3)
            return (words,) if in_split(split, "position", *words) else None

        (words,) = first_valid(draw)
        ordinal = rng.choice(("first", "second", "last"))
        answer = words[{"first": 0, "second": 1, "last": -1}[ordinal]]
        return QA("position", f"Which word is {ordinal}? {' '.join(words)}", answer)

    def topic(rng: Random) -> QA:
        def draw() -> tuple | None:
            name, language = rng.choice(list(TOPICS)), random_language(rng, work.languages)
            lists = [topic_words(name, language, rng) for _ in range(rng.randint(2, 4))]
            text = " ".join(", ".join(words) + "." for words in lists)
            return (name, text) if in_split(split, "topic", text) else None

        name, text = first_valid(draw)
        return QA("topic", f"{text}\n{SUMMARIZE}", f"A list of {name}.")

    def length(rng: Random) -> QA:
        def draw() -> tuple | None:
            digits = rng.choices("0123456789", k=rng.randint(2, 6))
            text = " ".join(digits)
            return (text, len(digits)) if in_split(split, "length", text) else None

        text, count = first_valid(draw)
        return QA("length", f"{text}\nHow many digits are there?", str(count))

    functions: list[Family] = [number, translate, translate_numbers, copy, count]
    functions += [lambda rng: described_scenes.scene(rng, split, counting=True)]
    functions += [lambda rng: described_scenes.scene(rng, split), arithmetic, compare, yes_no]
    functions += [language_id, sort, position]
    functions += [lambda rng: described_scenes.scenes(rng, split)]
    functions += [lambda rng: described_scenes.bars(rng, split)]
    functions += [lambda rng: described_scenes.letters(rng, split, work.languages), topic, length]
    return dict(zip(SHARES, functions, strict=True))


_CONCEPTS = [*COLOURS, *SHAPES, *(n for n in NOUNS if n not in COLOURS)]
_SHORT_NOUNS: tuple[str, ...] = ("cat", "dog", "cow", "pig", "bird", "fish")
_SHORT_NOUNS += ("car", "sun", "tree", "book", "hat", "key")


def copy_text(
    split: str, rng: Random, languages: Sequence[str], longest: int = 6
) -> tuple[str, str]:
    """Return (text, language) to copy: a string of two or more digits, or words of a language; in training also number
    words of all languages, because transcription copies their tokens."""
    language = random_language(rng, languages)
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
        return (text,) if in_split(split, "copy", text) else None

    (text,) = first_valid(draw)
    return text, language


def _translation(task: str, text: str, answer: str, target: str) -> QA:
    return QA(task, f"Translate to {LANGUAGES[target]}: {text}", answer, target, target)


def _sentences(language: str, work: Work, split: str) -> list[str]:
    rng = Random(f"{work.seed}:sentences:{language}:{split}")
    texts = list(islice(sentences(language, work, split, rng, 50), 300))
    while len(texts) < 60:  # fallback without packages: words of the lexicon
        words = " ".join(rng.sample([w[language] for w in lexicon().values()], 3))
        if in_split(split, "sentence", words):
            texts.append(words)
    return texts


def any_family(work: Work) -> Family:
    """Return a function that draws one training question, with families in the proportions of `SHARES`."""
    draw = families(work, "train")
    names, weights = list(SHARES), list(SHARES.values())
    return lambda rng: draw[rng.choices(names, weights)[0]](rng)


def training(work: Work, rng: Random) -> Iterator[QA]:
    """Yield training questions without end, in the proportions of `SHARES`."""
    draw = any_family(work)
    while True:
        yield draw(rng)


def rows(
    corpus: str, work: Work, draw: Callable[[Work, str], Family]
) -> Iterator[tuple[str, Sample]]:
    """Yield (split, row) for every split, each row drawn by `draw(work, split)`: for `Corpus.build`."""

    def make(split: str, rng: Random) -> Iterator[Sample]:
        family = draw(work, split)
        for i in range(work.rows[split]):
            yield family(rng).sample(f"{corpus}-{split}-{i:06d}")

    yield from fill(work, corpus, make)


def fresh(corpus: str, work: Work, draw: Family) -> Callable[[int], Sample]:
    """Return number -> training sample, each drawn by a generator seeded with its number: for `Corpus.fresh`."""
    return lambda n: draw(rng_for(work, f"{corpus}:fresh:{n}")).sample(f"{corpus}-fresh-{n:06d}")


def testing(work: Work, rng: Random, rows: int) -> Iterator[QA]:
    """Yield about `rows` held-out questions, the same number of each family (or as many as exist), families in turn,
    without duplicates, answers balanced."""
    draw = families(work, "test")
    per_family = -(-rows // len(draw))
    picked = [
        balance_answers((draw[name](rng) for _ in range(12 * per_family + 60)), per_family)
        for name in draw
    ]
    yield from interleave([iter(pairs) for pairs in picked])


def balance_answers(candidates: Iterator[QA], count: int) -> list[QA]:
    """Return `count` candidates (or as many as exist) with different questions and answers in equal numbers."""
    groups: dict[str, list[QA]] = {}
    questions: set[str] = set()
    for qa in candidates:
        if qa.question not in questions:
            questions.add(qa.question)
            groups.setdefault(qa.answer, []).append(qa)
    picked: list[QA] = []
    while groups and len(picked) < count:
        for answer in list(groups):
            picked.append(groups[answer].pop())
            if not groups[answer]:
                del groups[answer]
    return picked[:count]
