"""Small PDFs, written by hand: pages of text, and what programs never write."""

import io
from collections.abc import Sequence

from PIL import Image


def pdf(*objects: bytes) -> bytes:
    """A PDF of objects; the first one is its catalog."""
    out, offsets = b"%PDF-1.7\n", list[int]()
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count, start = len(objects) + 1, len(out)
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n"
        % (count, entries, count, start)
    )


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%b>>\nstream\n%b\nendstream" % (len(content), entries, content)


def pages(
    contents: list[bytes],
    box: bytes = b"0 0 595 842",
    resources: bytes = b"",
    further: Sequence[bytes] = (),
) -> bytes:
    """A PDF with a page for each content stream, and `further` objects, whose numbers begin at 4 + 2 * pages."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(count))
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%b]/Count %d/MediaBox[%b]/Resources<</Font<</F 3 0 R>>%b>>>>"
        % (kids, count, box, resources),
        font,
    ]
    for i, content in enumerate(contents):
        objects += [b"<</Type/Page/Parent 2 0 R/Contents %d 0 R>>" % (5 + 2 * i), content]
    return pdf(*objects, *further)


def text_pdf(*texts: str, box: bytes = b"0 0 595 842") -> bytes:
    """A PDF with a page for each text, line by line in Helvetica."""
    return pages([stream(_content(text)) for text in texts], box)


def _content(text: str) -> bytes:
    lines = b" ".join(b"(%b) '" % line.encode("latin-1") for line in text.splitlines())
    return b"BT /F 24 Tf 30 TL 60 780 Td %b ET" % lines


def scanned_pdf(*colours: str) -> bytes:
    """A PDF whose pages are pictures without text."""
    out = io.BytesIO()
    first, *others = [Image.new("RGB", (60, 80), colour) for colour in colours]
    first.save(out, "PDF", save_all=True, append_images=others)
    return out.getvalue()


def nested_forms_pdf(
    depth: int = 6, width: int = 10, drawing: bytes = b"0 0 m 500 500 l S", count: int = 1
) -> bytes:
    """A small PDF of equal pages of `width` ** (`depth` - 1) drawings: each form XObject draws the next one `width`
    times."""
    first, forms = 4 + 2 * count, list[bytes]()
    for number in range(first, first + depth):
        is_last = number == first + depth - 1
        resources = b"" if is_last else b"/Resources<</XObject<</X %d 0 R>>>>" % (number + 1)
        entries = b"/Type/XObject/Subtype/Form/BBox[0 0 595 842]" + resources
        forms.append(stream(drawing if is_last else b"/X Do " * width, entries))
    resources = b"/XObject<</X %d 0 R>>" % first
    return pages([stream(b"/X Do")] * count, resources=resources, further=forms)
