"""Pages of PDFs as images, with their text as the answer: training rows for reading (report 3.2, "OCR of PDFs").

>>> for image, text in pages(Path("paper.pdf").read_bytes()): ...
>>> samples = read(["papers/"], source="my papers", licence="CC-BY-4.0")       # one row per page
>>> samples = read(["papers/"], source="my papers", licence="CC-BY-4.0", photos=True)     # as if photographed

The text is the PDF's text layer, in its order; pages without text (scans) and pages with more than `longest` characters
are skipped. Pages are rendered by PDFium.
"""

import hashlib
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from polyphi.data.shards import Sample
from polyphi.processing.document import clean_text
from polyphi.runtime import inputs
from polyphi.types.messages import Message
from polyphi.types.parts import Image as Picture
from polyphi_recipe.filters.images import CAP, encoded, shrunk
from polyphi_recipe.raw.pages import content, files
from polyphi_recipe.raw.photos import photo

LONGEST_TEXT = 4000
"""[ours] Characters of a page, some 1,000 tokens; a page of a paper in two columns has up to 6,000."""
QUESTION = "Read the page."


def pages(data: bytes, side: int = CAP) -> Iterator[tuple[Image.Image, str]]:
    """Yield (image, text) of each page, its longer side `side` pixels. Raises ValueError if it is not a PDF, is damaged
    or locked, or if PDFium isn't installed."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ValueError(
            f"rendering PDFs needs PDFium ({error}); `pip install pypdfium2`"
        ) from None
    try:
        with pypdfium2.PdfDocument(data) as pdf:
            for page in pdf:
                text = page.get_textpage().get_text_range()
                yield _rendered(page, side), clean_text(text)
    except pypdfium2.PdfiumError as error:
        raise ValueError(f"expected a whole, unlocked PDF ({error})") from None


def read(
    patterns: Sequence[str | Path],
    *,
    source: str,
    licence: str,
    part: tuple[int, int] = (0, 1),
    side: int = CAP,
    longest: int = LONGEST_TEXT,
    photos: bool = False,
    report: Callable[[str], None] = print,
) -> Iterator[Sample]:
    """Yield one row per page of the PDFs in files, folders and globs; for `part` (i, n) of every n-th file from the
    i-th. With `photos` pages look photographed, deterministically. A PDF that can't be read is reported and skipped.
    Raises ValueError if a pattern matches no PDF."""
    index, count = part
    for pattern in patterns:
        for path in files(str(pattern), ("pdf",))[index::count]:
            inputs.note(path)
            try:
                pdf = content(path)
                name = hashlib.sha256(pdf).hexdigest()[:24]
                for page, (image, text) in enumerate(pages(pdf, side), 1):
                    if not 0 < len(text) <= longest:
                        continue
                    id = f"{name}-{page:04d}"
                    data = photo(image, random.Random(id)) if photos else encoded(image)
                    messages = (Message.user(Picture(data), QUESTION), Message.assistant(text))
                    meta: dict[str, Any] = {"task": "read_page", "file": path.name, "page": page}
                    yield Sample(id, messages, source, licence, meta)
            except (OSError, EOFError, zlib.error, ValueError) as error:
                report(f"  skipped {path}: {error}")


def _rendered(page: Any, side: int) -> Image.Image:
    """Return a page as RGB on white, its longer side `side` pixels."""
    wide, high = page.get_size()
    if not (wide > 0 and high > 0):
        raise ValueError(f"expected a page with an area, found {wide} x {high} points")
    image = page.render(scale=side / max(wide, high)).to_pil().convert("RGB")
    return shrunk(image, side)  # PDFium rounds up
