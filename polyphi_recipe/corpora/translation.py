"""Lines with the same meaning in two languages: short aligned paragraphs of LibreOffice's help, and the shared lexicon
(number words, strings of digits, nouns and colours). The content of the translation test tasks is left out."""

from collections.abc import Iterator
from random import Random

from polyphi.data.shards import Sample, document
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import aligned, fill, in_split, origin
from polyphi_recipe.synthetic.instructions import number_in_split
from polyphi_recipe.text.lexicon import LANGUAGES, digit_words, lexicon, number_words

LINES = 6  # pairs of the lexicon in a document


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        pairs = aligned(work, split, Random(rng.random()))
        for i in range(1_000_000):
            id = f"translation-{split}-{i:06d}"
            pair = next(pairs, None) if i % 2 else None
            if pair:
                page, source, text, target, other = pair
                meta = {"task": "translation", "language": target, "from": source, "page": page}
                pair_text = f"{LANGUAGES[source]}: {text}\n{LANGUAGES[target]}: {other}"
                yield document(id, pair_text, **origin(LIBREOFFICE[target]), **meta)
            else:
                source, target = rng.sample(list(LANGUAGES), 2)
                meta = {"task": "translation", "language": target, "from": source}
                yield document(id, words(split, rng, source, target), **origin("polyphi"), **meta)

    yield from fill(work, "translation", make)


def words(split: str, rng: Random, source: str, target: str) -> str:
    """Return some pairs of the lexicon: "English to French\\ncat = chat"."""
    lines: list[str] = []
    concepts = lexicon()
    while len(lines) < LINES:
        draw = rng.random()
        if draw < 0.5:
            words = concepts[rng.choice(sorted(concepts))]
            if in_split(split, "word", words[source], target):
                lines.append(f"{words[source]} = {words[target]}")
        elif draw < 0.8:
            n = rng.randrange(100)
            one, other = number_words(n, source), number_words(n, target)
            if split != "train" or (
                number_in_split(split, n, one) and number_in_split(split, n, other)
            ):
                lines.append(f"{n} = {one} = {other}")
        else:
            digits = "".join(rng.choices("0123456789", k=3))
            if in_split(split, "digits", digits):
                lines.append(f"{digit_words(digits, source)} = {digit_words(digits, target)}")
    return "\n".join([f"{LANGUAGES[source]} to {LANGUAGES[target]}", *lines])


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "translation",
    build,
    corpora=("instructions",),
    steps=against("translation", "instructions", ways=("quoted",)),
)
