"""Raw documents as samples: web pages (HTML, WARC), PDF, plain text, rows of JSON lines and parquet, and shards.

>>> read(["crawl/*.warc.gz", "books/"], source="my crawl", licence="CC-BY-4.0")          # every readable file
>>> read(["crawl/*.warc.gz"], source="my crawl", licence="CC-BY-4.0", part=work.part)    # a task's share of them

A file that can't be read is reported and skipped, because crawls contain some. An id is a hash of the document's
content, so that the same page has the same id in every run. The text of a page is its main text, by trafilatura.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.data.shards import Sample, Shards, document
from polyphi.runtime import inputs

ROWS_AT_ONCE = 256
"""Rows of a parquet file in memory."""
LONGEST_PAGE = 20 << 20
"""Maximum bytes of a page or file; longer ones are skipped."""
FORMATS = ("html", "htm", "pdf", "txt", "md", "jsonl", "parquet", "warc")


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


def html_text(page: bytes | str, url: str | None = None) -> tuple[str, str] | None:
    """Return (title, main text) of a web page; None if it has no main text. Raises ModuleNotFoundError without the
    extra `curate`."""
    try:
        import trafilatura
    except ImportError as error:  # lxml names no package where it misses lxml_html_clean
        raise ModuleNotFoundError(
            f"reading web pages needs trafilatura and lxml_html_clean ({error})",
            name=error.name or "lxml_html_clean",
        ) from error

    extracted = trafilatura.bare_extraction(
        page, url=url, include_comments=False, with_metadata=True
    )
    text = (
        "" if extracted is None or isinstance(extracted, dict) else (extracted.text or "").strip()
    )
    return (extracted.title or "", text) if text else None  # type: ignore[union-attr]


def pdf_text(data: bytes) -> tuple[str, list[str]]:
    """Return (title, text of each page). Raises ValueError if it is not a PDF, is damaged or locked."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        title = (reader.metadata.title if reader.metadata else None) or ""
        return str(title), [(page.extract_text() or "").strip() for page in reader.pages]
    except (pypdf.errors.PyPdfError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a whole, unlocked PDF ({error})") from None


Documents = Iterator[tuple[str, str, dict[str, Any]]]
"""(title, text, meta) of each document of a file."""


def _documents(path: Path) -> Documents:
    format_ = _format(path)
    if format_ == "warc":
        yield from _warc(path)
    elif format_ == "jsonl":
        yield from _jsonl(path)
    elif format_ == "parquet":
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _row(row)
    else:
        data = content(path)
        if format_ == "pdf":
            title, pages = pdf_text(data)
            if any(pages):
                yield title, "\n\n".join(filter(None, pages)), {"pages": len(pages)}
        elif format_ in ("html", "htm"):
            if extracted := html_text(data):
                yield *extracted, {}
        elif text := data.decode().strip():
            yield "", text, {}


def _warc(path: Path) -> Documents:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with path.open("rb") as file:
        try:
            for record in ArchiveIterator(file):
                if record.rec_type != "response" or record.http_headers is None:
                    continue
                content_type = record.http_headers.get_header("Content-Type") or ""
                if not content_type.startswith(("text/html", "application/xhtml")):
                    continue
                url = record.rec_headers.get_header("WARC-Target-URI")
                page = record.content_stream().read(LONGEST_PAGE)
                if extracted := html_text(page, url):
                    date = record.rec_headers.get_header("WARC-Date")
                    yield *extracted, {"url": url, "date": date}
        except ArchiveLoadFailed as error:
            raise ValueError(f"expected a WARC archive ({error})") from None


def _jsonl(path: Path) -> Documents:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
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


def files(pattern: str, formats: Sequence[str] = FORMATS) -> list[Path]:
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
    with _open(path) as file:
        data: bytes = file.read(LONGEST_PAGE + 1)
    if len(data) > LONGEST_PAGE:
        raise ValueError(f"expected at most {LONGEST_PAGE:,} bytes, found more")
    return data


def _format(path: Path) -> str:
    name = path.name.removesuffix(".gz").lower()
    return next((format_ for format_ in FORMATS if name.endswith(f".{format_}")), "")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
