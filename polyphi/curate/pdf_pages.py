"""Pages of PDFs as pictures, with their text as the answer: training rows for reading (report 3.2, "OCR of PDFs").

>>> for picture, text in pages(Path("paper.pdf").read_bytes()): ...
>>> samples = read(["papers/"], source="my papers", licence="CC-BY-4.0")       # a row a page
>>> samples = read(["papers/"], source="my papers", licence="CC-BY-4.0", photos=True)     # as if photographed

The text is what the PDF itself says, in its own order; pages that say none (scans) are left out, as are those that say
more than `longest` characters. Pages are drawn by PDFium.
"""

import hashlib
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from polyphi.curate.pages import content, files
from polyphi.curate.photos import photo
from polyphi.curate.pictures import CAP, encoded, shrunk
from polyphi.data.shards import Sample
from polyphi.messages import Image as Picture
from polyphi.messages import Message

LONGEST_TEXT = 4000
"""[ours] Characters of a page, some 1,000 tokens; a page of a paper in two columns has up to 6,000."""
QUESTION = "Read the page."


def pages(data: bytes, side: int = CAP) -> Iterator[tuple[Image.Image, str]]:
    """(picture, text) of each page, its longer side `side` pixels. Raises ValueError where it is no PDF, is damaged or
    locked, or where PDFium isn't installed."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ValueError(f"drawing PDFs needs PDFium ({error}); `pip install pypdfium2`") from None
    try:
        with pypdfium2.PdfDocument(data) as pdf:
            for page in pdf:
                text = page.get_textpage().get_text_range()
                yield _drawn(page, side), _clean(text)
    except pypdfium2.PdfiumError as error:
        raise ValueError(f"expected a whole, unlocked PDF ({error})") from None


def read(
    places: Sequence[str | Path],
    *,
    source: str,
    licence: str,
    part: tuple[int, int] = (0, 1),
    side: int = CAP,
    longest: int = LONGEST_TEXT,
    photos: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[Sample]:
    """A row a page of the PDFs in files, folders and globs; of `part` (i, n) every n-th file from the i-th. With
    `photos` each page is made to look photographed, always in the same way. A PDF that can't be read is told and left
    out. Raises ValueError where a place holds no PDF."""
    number, of = part
    for place in places:
        for path in files(str(place), ("pdf",))[number::of]:
            try:
                data = content(path)
                name = hashlib.sha256(data).hexdigest()[:24]
                for page, (picture, text) in enumerate(pages(data, side), 1):
                    if not 0 < len(text) <= longest:
                        continue
                    id = f"{name}-{page:04d}"
                    shown = photo(picture, random.Random(id)) if photos else encoded(picture)
                    messages = (Message.user(Picture(shown), QUESTION), Message.assistant(text))
                    meta: dict[str, Any] = {"task": "read_page", "file": path.name, "page": page}
                    yield Sample(id, messages, source, licence, meta)
            except (OSError, EOFError, zlib.error, ValueError) as error:
                tell(f"  {path} is left out: {error}")


def _drawn(page: Any, side: int) -> Image.Image:
    """A page as RGB on white, its longer side `side` pixels."""
    wide, high = page.get_size()
    if not (wide > 0 and high > 0):
        raise ValueError(f"expected a page with an area, found {wide} x {high} points")
    drawn = page.render(scale=side / max(wide, high)).to_pil().convert("RGB")
    return shrunk(drawn, side)  # PDFium rounds up


def _clean(text: str) -> str:
    """Lines without empty space at their ends; words that a line end broke are whole again (PDFium marks the place)."""
    whole = re.sub("[\ufffe\x02]\n?", "", text.replace("\r\n", "\n")).replace("\0", "")
    lines = (" ".join(line.split()) for line in whole.split("\n"))
    return "\n".join(line for line in lines if line)
