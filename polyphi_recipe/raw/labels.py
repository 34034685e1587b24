"""Labelled texts for the quality classifier (`quality.py`) from the available packages: a starting point, not a sample
of the web.

    aspect        has it                                       hasn't
    scientific    word problems with their worked answers      paragraphs of help pages
    educational   running prose of help pages                  lists of their headings and labels, as menus are
    toxicity      requests to refuse (`safety.py`)             their innocuous look-alikes
    obscurity     prose whose words are shuffled or garbled    the same prose

Train and test share no page, no template and no pair of verb and thing. Texts have one subject, and positives differ
from negatives in more than the aspect: measurements on them are an upper bound. Use labelled rows of your own.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from polyphi.text.scripts import UNSPACED
from polyphi_recipe.filters.quality import Labelled
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import safety
from polyphi_recipe.raw.real_text import (
    documents,
    help_pages,
    in_split,
    rng_for,
    shuffled,
    word_problems,
)
from polyphi_recipe.text.lexicon import LANGUAGES

ROWS = {"train": 400, "test": 150}
"""Texts per language, aspect and label, at most."""
REQUESTS = {"train": 80, "test": 40}
"""Requests per language and label."""


def rows(work: Work, split: str) -> Iterator[Labelled]:
    """Yield the rows of every aspect and language for which packages are available; deterministic in `work.seed`.
    Pages, modules and verbs are held out for the test split; texts of the training split are excluded from it, too."""
    train_texts = {row.text for row in _rows(work, "train")} if split == "test" else set()
    return (row for row in _rows(work, split) if row.text not in train_texts)


def _rows(work: Work, split: str) -> Iterator[Labelled]:
    for language in LANGUAGES:
        rng, most = rng_for(work, f"labels:{split}:{language}"), ROWS[split]
        prose = [t for _, t in islice(documents(language, work, split, rng), 2 * most)]
        problems = [f"{q}\n{a}" for _, q, a in word_problems(language, work, split)]
        labels = list(islice(_labels(language, work, split, rng), most))
        if problems and labels:  # labels: help pages are available
            yield from _both(language, "scientific", problems, prose[: 2 * len(problems)])
        if labels:
            yield from _both(language, "educational", prose[:most], labels)
        half = len(prose) // 2
        plain, other = prose[:half], prose[half:]
        yield from _both(language, "obscurity", [_obscure(t, language, rng) for t in other], plain)
    for language in LANGUAGES:
        rng = rng_for(work, f"labels:{split}:requests:{language}")
        pool = shuffled(list(safety.every(split, (language,))), rng)
        harmful, harmless = ([r.question for r in pool if r.harmful == h] for h in (True, False))
        count = REQUESTS[split]
        yield from _both(language, "toxicity", harmful[:count], harmless[:count])


def _both(language: str, aspect: str, has: list[str], has_not: list[str]) -> Iterator[Labelled]:
    yield from (Labelled(text, language, aspect, True) for text in has)
    yield from (Labelled(text, language, aspect, False) for text in has_not)


def _labels(language: str, work: Work, split: str, rng: Random) -> Iterator[str]:
    """Yield short paragraphs of help pages (headings, names of controls), 8 to 24 together, one per line."""
    pages, longest = help_pages(language, work), 12 if language in UNSPACED else 30
    lines: list[str] = []
    for path in shuffled(sorted(pages), rng):
        if in_split(split, path, percent=5):
            short = (t for _, t in pages[path].paragraphs if 2 <= len(t) <= longest)
            lines.extend(t for t in short if t[-1] not in ".。!?！？:：")
        while len(lines) >= 24:
            size = rng.randint(8, 24)
            yield "\n".join(lines[:size])
            lines = lines[size:]


def _obscure(text: str, language: str, rng: Random) -> str:
    """Shuffle the words of a text, or the letters of a third of them; in Chinese and Japanese the characters."""
    if language in UNSPACED:
        return "".join(shuffled(text, rng))
    words = text.split()
    if rng.random() < 0.5:
        return " ".join(shuffled(words, rng))
    return " ".join("".join(shuffled(w, rng)) if rng.random() < 1 / 3 else w for w in words)
