"""Raw documents as samples: web pages (HTML, WARC), PDF, plain text, rows of JSON lines and parquet, and shards.

>>> read(["crawl/*.warc.gz", "books/"], source="my crawl", licence="CC-BY-4.0")          # every file that is readable
>>> read(["crawl/*.warc.gz"], source="my crawl", licence="CC-BY-4.0", part=work.part)    # a task's share of them

A file that can't be read is told and left out, as a crawl has some. An id is made of the document's content, so that
the same page has the same id whoever reads it. What is kept of a page is its main text, as trafilatura finds it.
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

ROWS_AT_ONCE = 256
"""Rows of a parquet file in memory."""
LONGEST_PAGE = 20 << 20
"""Bytes of a page or file that are looked at; what is longer is left out."""
FORMATS = ("html", "htm", "pdf", "txt", "md", "jsonl", "parquet", "warc")


def read(
    places: Sequence[str | Path],
    *,
    source: str,
    licence: str,
    part: tuple[int, int] = (0, 1),
    tell: Callable[[str], None] = print,
) -> Iterator[Sample]:
    """Documents of files, folders and globs; of `part` (i, n) every n-th file from the i-th. A folder of shards gives
    its samples, of a part every n-th. `source` and `licence` are those of rows that don't say their own. Raises
    ValueError where a place holds nothing that can be read."""
    number, of = part
    for place in places:
        folder = Path(place)
        if (folder / "manifest.json").exists():
            kept = Shards(folder)
            yield from (kept[i] for i in range(number, len(kept), of))
            continue
        for path in files(str(place))[number::of]:
            try:
                for title, text, meta in _documents(path):
                    yield _sample(title, text, {"file": path.name, **meta}, source, licence)
            except (OSError, ValueError, EOFError, zlib.error, pa.ArrowInvalid) as error:
                tell(f"  {path} is left out: {error}")


def html_text(page: bytes | str, url: str | None = None) -> tuple[str, str] | None:
    """(title, main text) of a web page; None where it has none to speak of."""
    import trafilatura

    found = trafilatura.bare_extraction(page, url=url, include_comments=False, with_metadata=True)
    text = "" if found is None or isinstance(found, dict) else (found.text or "").strip()
    return (found.title or "", text) if text else None  # type: ignore[union-attr]


def pdf_text(data: bytes) -> tuple[str, list[str]]:
    """(title, text of each page). Raises ValueError where it is no PDF, is damaged or locked."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        title = (reader.metadata.title if reader.metadata else None) or ""
        return str(title), [(page.extract_text() or "").strip() for page in reader.pages]
    except (pypdf.errors.PyPdfError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a whole, unlocked PDF ({error})") from None


Found = Iterator[tuple[str, str, dict[str, Any]]]
"""(title, text, meta) of each document of a file."""


def _documents(path: Path) -> Found:
    kind = _kind(path)
    if kind == "warc":
        yield from _warc(path)
    elif kind == "jsonl":
        yield from _jsonl(path)
    elif kind == "parquet":
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _row(row)
    else:
        data = content(path)
        if kind == "pdf":
            title, pages = pdf_text(data)
            if any(pages):
                yield title, "\n\n".join(filter(None, pages)), {"pages": len(pages)}
        elif kind in ("html", "htm"):
            if found := html_text(data):
                yield *found, {}
        elif text := data.decode().strip():
            yield "", text, {}


def _warc(path: Path) -> Found:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with path.open("rb") as file:
        try:
            for record in ArchiveIterator(file):
                if record.rec_type != "response" or record.http_headers is None:
                    continue
                kind = record.http_headers.get_header("Content-Type") or ""
                if not kind.startswith(("text/html", "application/xhtml")):
                    continue
                url = record.rec_headers.get_header("WARC-Target-URI")
                page = record.content_stream().read(LONGEST_PAGE)
                if found := html_text(page, url):
                    date = record.rec_headers.get_header("WARC-Date")
                    yield *found, {"url": url, "date": date}
        except ArchiveLoadFailed as error:
            raise ValueError(f"expected a WARC archive ({error})") from None


def _jsonl(path: Path) -> Found:
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
    kept: dict[str, Any] = {
        key: row[key] for key in ("url", "date", "language", "licence", "source") if key in row
    }
    return row.get("title") or "", text, kept


def _sample(title: str, text: str, meta: dict[str, Any], source: str, licence: str) -> Sample:
    whole = text if not title or text.startswith(title) else f"{title}\n{text}"
    origin = (meta.pop("source", source), meta.pop("licence", licence))
    id = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:24]
    return document(id, whole, *origin, **meta)


def files(place: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Readable files of a file, folder or glob, in the order of their names. Raises ValueError where there are none."""
    path = Path(place)
    found = sorted(path.rglob("*")) if path.is_dir() else [Path(p) for p in sorted(glob(place))]
    kept = [p for p in found if p.is_file() and _kind(p) in formats]
    if not kept:
        raise ValueError(
            f"nothing to read at {place}: expected files that end in {', '.join(formats)} (or those with .gz)"
        )
    return kept


def content(path: Path) -> bytes:
    """All of a file, unpacked where it ends in .gz. Raises ValueError where that is more than `LONGEST_PAGE`."""
    with _open(path) as file:
        data: bytes = file.read(LONGEST_PAGE + 1)
    if len(data) > LONGEST_PAGE:
        raise ValueError(f"expected at most {LONGEST_PAGE:,} bytes")
    return data


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz").lower()
    return next((kind for kind in FORMATS if name.endswith(f".{kind}")), "")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
