"""Raw documents as samples: web pages (HTML, WARC), PDF, plain text, rows of JSON lines and parquet, and shards.

>>> read(["crawl/*.warc.gz", "books/"], source="my crawl", licence="CC-BY-4.0")          # every readable file
>>> read(["crawl/*.warc.gz"], source="my crawl", licence="CC-BY-4.0", part=work.part)    # a task's share of them

A file that can't be read is reported and skipped, because crawls contain some. An id is a hash of the document's
content, so that the same page has the same id in every run. The text of a page is its main text, by trafilatura.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyphi.data.addresses import open_file
from polyphi.data.arrow_files import parquet_rows
from polyphi.data.documents import LONGEST_PAGE, READERS
from polyphi.data.limits import parse_json
from polyphi.data.shards import Sample, Shards, document
from polyphi.runtime import inputs

FORMATS = {
    **{name: name for name in ("html", "pdf", "warc", "jsonl", "parquet")},
    **{"htm": "html", "txt": "text", "md": "text"},
}
"""Ending of a file, without .gz -> its format (polyphi/data/documents.py)."""


def read(
    patterns: Sequence[str | Path],
    *,
    source: str,
    licence: str,
    part: tuple[int, int] = (0, 1),
    report: Callable[[str], None] = print,
) -> Iterator[Sample]:
    """Yield the documents of files, folders and globs; for `part` (i, n) of every n-th file from the i-th. A folder of
    shards yields its samples, for a part every n-th. `source` and `licence` are defaults for rows without their own.
    Raises ValueError if a pattern matches nothing readable."""
    index, count = part
    for pattern in patterns:
        folder = Path(pattern)
        if (folder / "manifest.json").exists():
            inputs.note(folder / "manifest.json")
            shards = Shards(folder)
            yield from (shards[i] for i in range(index, len(shards), count))
            continue
        for path in files(str(pattern))[index::count]:
            inputs.note(path)
            try:
                for title, text, meta in _documents(path):
                    yield _sample(title, text, {"file": path.name, **meta}, source, licence)
            except (OSError, ValueError, EOFError, zlib.error, pa.ArrowInvalid) as error:
                report(f"  skipped {path}: {error}")


Documents = Iterator[tuple[str, str, dict[str, Any]]]
"""(title, text, meta) of each document of a file."""


def _documents(path: Path) -> Documents:
    format_ = _format(path)
    if format_ == "jsonl":
        yield from _jsonl(path)
    elif format_ == "parquet":
        for row in parquet_rows(str(path)):
            if isinstance(row, ValueError):
                raise row
            yield _row(row)
    else:
        with open_file(str(path)) as file:
            for row in READERS[FORMATS[format_]](file):
                title, text = row.pop("title", ""), row.pop("text")
                yield title, text, row


def _jsonl(path: Path) -> Documents:
    with open_file(str(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: expected an object, found {type(row).__name__}")
            yield _row(row)


def _row(row: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(text := row.get("text"), str):
        raise ValueError(f"a row needs a `text`, found the columns {', '.join(row)}")
    meta: dict[str, Any] = {
        key: row[key] for key in ("url", "date", "language", "licence", "source") if key in row
    }
    return row.get("title") or "", text, meta


def _sample(title: str, text: str, meta: dict[str, Any], source: str, licence: str) -> Sample:
    full_text = text if not title or text.startswith(title) else f"{title}\n{text}"
    origin = (meta.pop("source", source), meta.pop("licence", licence))
    id = hashlib.sha256(full_text.encode(errors="surrogatepass")).hexdigest()[:24]
    return document(id, full_text, *origin, **meta)


def files(pattern: str, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Return the readable files of a file, folder or glob, ordered by name. Raises ValueError if there are none."""
    path = Path(pattern)
    inputs.note_listing(
        pattern, [f".{format_}{packed}" for format_ in formats for packed in ("", ".gz")]
    )
    paths = sorted(path.rglob("*")) if path.is_dir() else [Path(p) for p in sorted(glob(pattern))]
    readable = [p for p in paths if p.is_file() and _format(p) in formats]
    if not readable:
        raise ValueError(
            f"nothing to read at {pattern}: expected files that end in {', '.join(formats)} (or those with .gz)"
        )
    return readable


def content(path: Path) -> bytes:
    """Return a file's content, unpacked if it ends in .gz. Raises ValueError above `LONGEST_PAGE` bytes."""
    with open_file(str(path)) as file:
        data: bytes = file.read(LONGEST_PAGE + 1)
    if len(data) > LONGEST_PAGE:
        raise ValueError(f"expected at most {LONGEST_PAGE:,} bytes, found more")
    return data


def _format(path: Path) -> str:
    name = path.name.removesuffix(".gz").lower()
    return next((format_ for format_ in FORMATS if name.endswith(f".{format_}")), "")
