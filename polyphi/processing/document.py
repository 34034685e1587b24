"""Documents -> texts and images: a PDF page by page, a text file as one text.

>>> list(document_parts(Document("report.pdf"), CAPS, (896, 1344)))
[(Text('File report.pdf, page 1 of 2:\\n'), Image(<3,405,750 bytes>, ...), Text('Annual report ...\\n')), ...]

The content decides what a file is; a name or type of an image, audio, a video or an archive is an error. PDFium reads
PDFs in a separate process (isolated.py). Limits and errors are as in media.py.
"""

import codecs
import re
from collections.abc import Iterator

from polyphi.media.file_types import is_pdf, promise, sniff
from polyphi.media.isolated import DecoderError, pdf_pages
from polyphi.media.media import Caps, MediaError, bmp, decoder_media_error, read_within
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.installation import from_checkout
from polyphi.runtime.steps import Stop
from polyphi.types.parts import Document, Image, Text, file_text

PAGE_CROPS = 2, 3
"""[ours] Crops of 448 pixels along the short and the long side of a page's image: A4 at 108 dots per inch. Its text
stays legible, a page takes 1,791 tokens, and no crop is padding."""


def document_parts(
    document: Document,
    caps: Caps,
    box: tuple[int, int] | None,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> Iterator[tuple[Text | Image, ...]]:
    """Yield the parts that show a document to the model [ours], page by page. A text file in UTF-8 is one text. A page
    of a PDF is a text with its number, its image, as large as fits into `box` (short, long side in pixels; None: no
    image), and its text layer unless it is empty. () is yielded where no process runs, so that decoding may pause.

    Raises `MediaError` (a ValueError) for another kind of file, a damaged or encrypted PDF, above a limit of `caps`,
    without pypdfium2, and for a PDF without any text where there are no images; also soon after `stop` returns True.
    """
    data, source = read_within(document.source, caps.document_bytes, "document")
    if promised := promise(document.name, document.media_type):
        raise MediaError(
            f"{source}: expected a PDF or a text in UTF-8, found {sniff(data)} in a file whose name or type says "
            f"{promised}; send images, audio and videos as such, and rename a text",
            "kind",
        )
    if not is_pdf(data):
        yield (file_text(document.name, _plain_text(data, source, caps)),)
        return
    is_empty = box is None
    try:
        pages = pdf_pages(
            data,
            box=box,
            max_pages=caps.document_pages,
            max_characters=caps.document_characters,
            stop=stop,
            decoders=decoders,
        )
        number = 0
        for page in pages:
            if page is None:
                yield ()
                continue
            number += 1
            count, image, layer = page
            parts: list[Text | Image] = [Text(f"File {document.name}, page {number} of {count}:\n")]
            if image is not None:
                parts.append(Image(bmp(*image), document.detail))
            if text := clean_text(layer):
                parts.append(Text(f"{text}\n"))
                is_empty = False
            yield tuple(parts)
    except DecoderError as error:
        raise _media_error(error, source, caps) from None
    if is_empty:
        raise MediaError(
            f"{source}: the PDF has no text, only pictures, and this model reads no images; use a model with a vision "
            "encoder, or a PDF with a text layer"
        )


def clean_text(text: str) -> str:
    """The text of a page with single blanks, without blank lines, and with the words rejoined that a line end broke
    (PDFium marks the break)."""
    joined = re.sub("[\ufffe\x02]\n?", "", text.replace("\r\n", "\n")).replace("\0", "")
    lines = (" ".join(line.split()) for line in joined.split("\n"))
    return "\n".join(line for line in lines if line)


def _plain_text(data: bytes, source: str, caps: Caps) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if not text or "\0" in text:
        kind = "UTF-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else sniff(data)
        if kind in ("text", "unknown data"):
            kind = "data that are no UTF-8 text"
        raise MediaError(f"{source}: expected a PDF or a text in UTF-8, found {kind}", "kind")
    if len(text) > caps.document_characters:
        raise MediaError(
            _too_many(source, "characters", caps.document_characters, len(text)), "size"
        )
    return text


def _media_error(error: DecoderError, source: str, caps: Caps) -> MediaError:
    value = round(error.value or 0)
    limits = {"pages": caps.document_pages, "characters": caps.document_characters}
    if error.error in limits:
        return MediaError(_too_many(source, error.error, limits[error.error], value), "size")
    if error.error == "password":
        return MediaError(f"{source}: the PDF is encrypted; remove its password first")
    if error.error == "missing":
        return MediaError(f"{source}: a PDF needs pypdfium2; {from_checkout('serve')}", "kind")
    return decoder_media_error(error, source, "PDF")


def _too_many(source: str, unit: str, limit: int, value: int) -> str:
    return f"{source}: a document may have {limit:,} {unit}, found {value:,} or more; send a part of it"
