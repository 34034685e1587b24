"""Accuracy and speed of the curation of text:

    python -m experiments.curation.text language  # accuracy by language and length, on paragraphs of help pages
    python -m experiments.curation.text rules  # share of help pages that each rule drops
    python -m experiments.curation.text quality  # precision and recall by aspect and language, on the packages' labels
    python -m experiments.curation.text pii  # precision and recall on planted cases; findings in help pages
    python -m experiments.curation.text speed  # MB/s of each step on one core

Data packages are downloaded into ~/.cache/polyphi at first use.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from random import Random

from polyphi_recipe.filters.language import identify
from polyphi_recipe.filters.pii import ENTITY_TYPES, find
from polyphi_recipe.filters.quality import Classifier, measure, table, train
from polyphi_recipe.filters.rules import judge
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import labels
from polyphi_recipe.raw.real_text import documents, help_pages, shuffled
from polyphi_recipe.synthetic import planted
from polyphi_recipe.text.lexicon import LANGUAGES

WORK = Work({"train": 1}, 0, Path.home() / ".cache/polyphi", Path("."))
LENGTHS = ((10, 20), (20, 50), (50, 100), (100, 300), (300, 10_000))


def paragraphs(language: str, most: int) -> list[str]:
    """Distinct paragraphs of help pages, shuffled."""
    every = {t for page in help_pages(language, WORK).values() for _, t in page.paragraphs}
    return shuffled(sorted(every), Random(0))[:most]


def prose(language: str, most: int) -> list[str]:
    """Excerpts of help pages."""
    return [t for _, t in islice(documents(language, WORK, "train", Random(0)), most)]


def language() -> None:
    """Share of paragraphs whose language is identified, and share that the filter would keep (score >= 0.65)."""
    print("| language |", " | ".join(f"{a}-{b}" for a, b in LENGTHS), "| (characters)")
    for code in LANGUAGES:
        cells = []
        mine = paragraphs(code, 100_000)
        for low, high in LENGTHS:
            some = [t for t in mine if low <= len(t) < high and any(map(str.isalpha, t))][:1000]
            results = [identify(t) for t in some]
            right = sum(c == code for c, _ in results) / max(1, len(some))
            confident = sum(c == code and s >= 0.65 for c, s in results) / max(1, len(some))
            wrong = sum(c != code and c in LANGUAGES and s >= 0.65 for c, s in results)
            cells.append(
                f"{right:.3f} ({confident:.3f}, {wrong / max(1, len(some)):.3f}) n={len(some)}"
            )
        print(f"| {code} |", " | ".join(cells), "|")
    print(
        "identified (with a score of 0.65 or more, another of the eight with such a score) n = paragraphs"
    )


def rules() -> None:
    """Share of 400 excerpts of help pages that each rule drops."""
    for code in LANGUAGES:
        texts = prose(code, 400)
        dropped = Counter(judge(t, code)[0] or "kept" for t in texts)
        print(code, ", ".join(f"{r} {n / len(texts):.3f}" for r, n in dropped.most_common()))


def _trained() -> Classifier:
    rows = list(labels.rows(WORK, "train"))
    print(f"{len(rows)} rows")
    return train(lambda: rows)


def quality() -> None:
    """Held-out precision and recall at 0.5, with 95 % intervals."""
    print(table(measure(_trained(), labels.rows(WORK, "test"))))


def spans(text: str, code: str) -> Iterable[planted.Planted]:
    """Findings in a text as (entity type, start, end), the form of planted cases."""
    return ((f.entity_type, f.start, f.end) for f in find(text, code))


def pii() -> None:
    """Precision and recall on planted cases of seeds that no test uses, then the findings in help pages, which contain
    almost no personal information."""
    counts = planted.measure(spans, lambda code: planted.cases(code, 200, seed=2))
    print("precision / recall |", " | ".join(LANGUAGES))
    for entity_type in ENTITY_TYPES:
        cells = []
        for code in LANGUAGES:
            n = counts[code, entity_type]
            precision = n["right"] / max(1, n["right"] + n["wrong"])
            cells.append(f"{precision:.2f} / {n['found'] / n['planted']:.2f}")
        print(f"{entity_type} |", " | ".join(cells))
    counts = planted.measure(spans, planted.fresh)
    print("fresh sentences, all languages:")
    for entity_type in ENTITY_TYPES:
        n = sum((counts[key] for key in counts if key[1] == entity_type), Counter[str]())
        print(f"{entity_type}: {n['found']} of {n['planted']} covered whole, {n['wrong']} wrong")
    for code in LANGUAGES:
        texts = paragraphs(code, 4000)
        size = sum(len(t.encode()) for t in texts) / 1e6
        types = Counter(f.entity_type for t in texts for f in find(t, code))
        print(f"{code}: {size:.2f} MB of help pages, found {dict(types)}")


def speed() -> None:
    """MB of UTF-8 per second, the best of three rounds over 200 excerpts of help pages."""
    judged = _trained()
    steps: dict[str, Callable[[str, str], object]] = {
        "language": lambda text, code: identify(text),
        "rules": judge,
        "quality": judged.scores,
        "pii": find,
    }
    for code in LANGUAGES:
        texts = prose(code, 200)
        size = sum(len(t.encode()) for t in texts) / 1e6
        cells = []
        for name, step in steps.items():
            took = []
            for _ in range(3):
                start = time.perf_counter()
                for text in texts:
                    step(text, code)
                took.append(time.perf_counter() - start)
            cells.append(f"{name} {size / min(took):.2f}")
        print(code, " ".join(cells), "MB/s", flush=True)


if __name__ == "__main__":
    parts = {f.__name__: f for f in (language, rules, quality, pii, speed)}
    if len(sys.argv) != 2 or sys.argv[1] not in parts:
        sys.exit(f"expected one of {', '.join(parts)}")
    parts[sys.argv[1]]()
