"""Raw documents of web pages, WARC archives, PDFs and text files, as rows {"text", "title", "url", "date"}.

A page's text is its main text, by trafilatura; a PDF's is its text layer, by pypdf. Both are in the extra `curate`.
"""

import codecs
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

LONGEST_PAGE = 20 << 20
"""Maximum bytes of a page or file; longer ones are an error."""
MAX_HEADERS, PIECE = 4 << 20, 1 << 20
"""[ours] Maximum bytes of the headers of an archive's record, and bytes of its content that are read at once."""
GZIP = b"\x1f"
"""The first byte of a gzip file, and of no WARC archive."""
Rows = Iterator[dict[str, Any]]


def html_text(page: bytes | str, url: str | None = None) -> tuple[str, str] | None:
    """(title, main text) of a web page; None if it has no main text. Raises ModuleNotFoundError without the extra
    `curate`."""
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
    """(title, text of each page) of a PDF. Raises ValueError for data that is not a PDF, is damaged or locked."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        title = (reader.metadata.title if reader.metadata else None) or ""
        return str(title), [(page.extract_text() or "").strip() for page in reader.pages]
    except (pypdf.errors.PyPdfError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a whole, unlocked PDF ({error})") from None


def _content(file: BinaryIO) -> bytes:
    data = file.read(LONGEST_PAGE + 1)
    if len(data) > LONGEST_PAGE:
        raise ValueError(f"expected at most {LONGEST_PAGE:,} bytes, found more")
    return data


def text(file: BinaryIO) -> Rows:
    """The document of a text file; none of an empty one."""
    data = _content(file)
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if content := data.decode("utf-16" if is_utf16 else "utf-8-sig").strip():
        yield {"text": content}


def html(file: BinaryIO) -> Rows:
    """The main text of a page; none of a page without any."""
    if extracted := html_text(_content(file)):
        yield {"title": extracted[0], "text": extracted[1]}


def pdf(file: BinaryIO) -> Rows:
    """The text layer of a PDF; none of a scan."""
    title, pages = pdf_text(_content(file))
    if any(pages):
        yield {"title": title, "text": "\n\n".join(filter(None, pages)), "pages": len(pages)}


def warc(file: BinaryIO) -> Rows:
    """The main texts of an archive's pages. Raises ValueError for another file, and at the end for a damaged one."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    source = _Watched(file)
    try:
        for record in _with_addresses(ArchiveIterator(source)):
            if (page := _page(record, source)) is not None:
                url = record.rec_headers.get_header("WARC-Target-URI")
                if extracted := html_text(page, url):
                    title, body = extracted
                    date = record.rec_headers.get_header("WARC-Date")
                    yield {"title": title, "text": body, "url": url, "date": date}
            for _ in _pieces(record.raw_stream, source):
                pass  # of what isn't read
    except ArchiveLoadFailed as error:
        raise ValueError(f"expected a WARC archive ({error})") from None
    if source.error is not None:
        raise ValueError(f"expected a whole WARC archive ({source.error})")


def _with_addresses(archive: Iterator[Any]) -> Iterator[Any]:
    """The records of an archive. Raises ValueError for a response without an address, which warcio needs."""
    try:
        yield from archive
    except AttributeError as error:
        raise ValueError(
            f"expected WARC-Target-URI in the headers of each response, found none ({error})"
        ) from None


def _page(record: Any, source: "_Watched") -> bytes | None:
    """The page of a record, up to `LONGEST_PAGE`; None for other records."""
    if record.rec_type != "response" or record.http_headers is None:
        return None
    content_type = record.http_headers.get_header("Content-Type") or ""
    if not content_type.startswith(("text/html", "application/xhtml")):
        return None
    page = bytearray()
    for piece in _pieces(_content_stream(record), source):
        page += piece
        if len(page) >= LONGEST_PAGE:
            break
    return bytes(page[:LONGEST_PAGE])


def _content_stream(record: Any) -> Any:
    """The unpacked content of a record. `record.content_stream` unpacks a chunk at once, which may have megabytes."""
    from warcio.bufferedreaders import BufferedReader, ChunkedDataReader

    stream, headers = record.raw_stream, record.http_headers
    if headers.get_header("Transfer-Encoding") == "chunked":
        stream = ChunkedDataReader(stream)
    encoding = (headers.get_header("Content-Encoding") or "").lower()
    if encoding in BufferedReader.get_supported_decompressors():
        stream = BufferedReader(stream, decomp_type=encoding)
    return stream


def _pieces(stream: Any, source: "_Watched") -> Iterator[bytes]:
    """The content of a record, whose length has no limit, piece by piece."""
    source.begin()
    while piece := stream.read(PIECE):
        yield piece
        source.begin()


class _Watched:
    """A file that keeps the error of its last read: warcio takes one for the end of the archive. Raises ValueError for
    headers of more than `MAX_HEADERS` bytes, and for a compressed file, which warcio would unpack without a limit."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size, self._is_start = 0, True
        self.error: Exception | None = None

    def begin(self) -> None:
        """Begin to count the bytes that are read at once."""
        self._size = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the archive."""
        try:
            data = self._file.read(size)
            if self._is_start and data.startswith(GZIP):
                raise ValueError(
                    "expected a WARC archive, found a gzip file; unpack it, or name it .warc.gz if it isn't yet"
                )
            self._size, self._is_start = self._size + len(data), False
            if self._size > MAX_HEADERS:
                raise ValueError(f"expected headers of at most {MAX_HEADERS:,} bytes, found more")
            return data
        except (EOFError, OSError) as error:
            self.error = error
            raise


READERS: dict[str, Callable[[BinaryIO], Rows]] = {
    "text": text,
    "html": html,
    "warc": warc,
    "pdf": pdf,
}
