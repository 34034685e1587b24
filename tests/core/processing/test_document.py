"""Documents: what the model sees of PDFs and text files, their limits, and files that programs never write."""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pypdf
import pytest
from PIL import Image as pil

from polyphi.media import isolated
from polyphi.media.media import CAPS, Caps, MediaError
from polyphi.processing.document import document_parts
from polyphi.processing.expansion import expand, expanded_part
from polyphi.processing.image import count_tokens
from polyphi.runtime.fork_server import ForkServer
from polyphi.types.messages import Message
from polyphi.types.parts import Document, Image, Text
from tests.fixtures.pdfs import nested_forms_pdf, pages, pdf, scanned_pdf, stream, text_pdf
from tests.fixtures.variants import few

BOX = 896, 1344
LETTER = text_pdf("Dear Ann,\nthe total is 12.50.", "Yours\nBob")


STARTED: list[ForkServer] = []
"""Forks the processes of this module's tests in milliseconds."""


@pytest.fixture(scope="module", autouse=True)
def decoders() -> Iterator[None]:
    STARTED.append(isolated.start_decoders())
    yield
    STARTED.pop().close()


def parts(
    data: bytes,
    name: str = "a.pdf",
    caps: Caps = CAPS,
    box: tuple[int, int] | None = BOX,
    *,
    forked: bool = True,
) -> list[Text | Image]:
    decoders = STARTED[0] if forked else None
    pages = document_parts(Document(data, name), caps, box, decoders=decoders)
    return [part for page in pages for part in page]


def texts(data: bytes, **options: object) -> list[str]:
    return [part.text for part in parts(data, **options) if isinstance(part, Text)]


def pixels(part: Text | Image) -> np.ndarray:
    assert isinstance(part, Image) and isinstance(part.source, bytes)
    return np.asarray(pil.open(io.BytesIO(part.source)))


def test_a_page_is_its_number_its_image_and_its_text() -> None:
    first, image, text, second, _, last = parts(LETTER, "letter.pdf")
    assert (first, second) == (
        Text("File letter.pdf, page 1 of 2:\n"),
        Text("File letter.pdf, page 2 of 2:\n"),
    )
    assert (text, last) == (Text("Dear Ann,\nthe total is 12.50.\n"), Text("Yours\nBob\n"))
    grey = pixels(image).mean(axis=2)
    assert grey.shape == (1268, 896) and grey.max() == 255
    rows, columns = np.nonzero(grey < 128)
    assert 105 < rows.min() < 120 and 175 < rows.max() < 195 and 85 < columns.min() < 100


def test_a_page_without_text_has_none() -> None:
    number, image, *rest = parts(scanned_pdf("red", "blue"))
    assert (
        number == Text("File a.pdf, page 1 of 2:\n") and pixels(image)[500, 500].tolist()[0] > 240
    )
    assert rest[0] == Text("File a.pdf, page 2 of 2:\n") and len(rest) == 2


@pytest.mark.parametrize(
    ("box", "size"),
    [
        (b"0 0 595.28 841.89", (896, 1267)),  # A4
        (b"0 0 612 792", (896, 1160)),  # Letter
        (b"0 0 960 540", (1344, 756)),  # a slide
        (b"0 0 100 100", (896, 896)),
        (b"0 0 14400 14400", (896, 896)),
        (b"0 0 10 14400", (1, 1344)),
        (b"0 0 1e9 1e9", (896, 1160)),  # no number of PDF: Letter
    ],
)
def test_a_page_is_as_large_as_the_crops_are(box: bytes, size: tuple[int, int]) -> None:
    _, image, *_ = parts(text_pdf("x", box=box))
    height, width, _ = pixels(image).shape
    assert (width, height) == size


def test_the_tokens_of_a_page() -> None:
    """As docs/server_api.md says."""
    assert count_tokens(896, 1267) == 1791
    assert count_tokens(896, 1267, max_crops=1) == 481


def test_without_images_there_is_the_text_alone() -> None:
    assert parts(LETTER, box=None) == [
        Text("File a.pdf, page 1 of 2:\n"),
        Text("Dear Ann,\nthe total is 12.50.\n"),
        Text("File a.pdf, page 2 of 2:\n"),
        Text("Yours\nBob\n"),
    ]
    with pytest.raises(MediaError, match="only pictures") as error:
        parts(scanned_pdf("red"), box=None)
    assert error.value.reason == "content"


def test_a_process_of_its_own_gives_the_same() -> None:
    for data in (LETTER, scanned_pdf("red")):
        assert parts(data, forked=False) == parts(data)


@pytest.mark.parametrize("name", ["a.pdf", "notes.txt", ""])
def test_the_content_decides_and_not_the_name(name: str) -> None:
    assert parts(b"\xef\xbb\xbfZ\xc3\xbcrich\n", name) == [
        Text(f"File {name or 'document'}:\nZürich\n\n")
    ]
    assert parts(b"BMW is a car", name) == [Text(f"File {name or 'document'}:\nBMW is a car\n")]
    assert len(parts(b"junk\n" * 200 + LETTER, name)) == 6
    assert parts(b"junk\n" * 300 + b"%PDF-1.7", name)[0].text.endswith("%PDF-1.7\n")


@pytest.mark.parametrize(
    ("name", "media_type", "promised"),
    [
        ("bad.png", "", "an image"),
        ("x.ZIP", "", "an archive"),
        ("talk.mp3", "text/plain", "audio or video"),
        ("", "image/jpeg", "an image"),
        ("a.txt", "audio/x-wav; rate=8000", "audio or video"),
        ("", "application/gzip", "an archive"),
    ],
)
def test_a_name_or_type_that_the_bytes_do_not_keep_is_refused(
    name: str, media_type: str, promised: str
) -> None:
    for data, content in ((b"hello", "text"), (LETTER, "PDF")):
        document = Document(data, name, media_type=media_type)
        with pytest.raises(MediaError, match=f"found {content} .*{promised}") as error:
            list(document_parts(document, CAPS, BOX))
        assert error.value.reason == "kind"


@pytest.mark.parametrize("name", ["drawing.svg", "main.ts", "zip", "go.mod", ".png"])
def test_names_of_formats_that_are_text_promise_nothing(name: str) -> None:
    assert parts(b"hello", name) == [Text(f"File {name}:\nhello\n")]


def test_a_document_has_the_name_of_its_path(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("Hello")
    for path in (tmp_path / "notes.md", str(tmp_path / "notes.md")):
        assert expand([Message.user(Document(path))])[0].parts == (Text("File notes.md:\nHello\n"),)
    with pytest.raises(MediaError, match="nothing"):
        expand([Message.user(Document(tmp_path / "none"))])


@pytest.mark.parametrize(
    ("data", "file_type"),
    [
        ("Hello".encode("utf-16"), "UTF-16"),
        (b"Z\xfcrich", "no UTF-8 text"),
        (b"a" * 2000 + b"\xff", "no UTF-8 text"),
        (b"a\0b", "no UTF-8 text"),
        (b"PK\x03\x04\x14\0", "ZIP"),
        (b"\x89PNG\r\n\x1a\n\0", "PNG"),
        (b"", "nothing"),
    ],
)
def test_other_files_are_named_in_the_error(data: bytes, file_type: str) -> None:
    with pytest.raises(MediaError, match=f"PDF .*UTF-8, found .*{file_type}") as error:
        parts(data)
    assert error.value.reason == "kind"


def test_limits() -> None:
    for data, caps, message in (
        (LETTER, Caps(document_pages=1), "1 pages, found 2"),
        (LETTER, Caps(document_characters=20), "20 characters"),
        (LETTER, Caps(document_bytes=100), "100 bytes"),
        (b"a" * 21, Caps(document_characters=20), "20 characters, found 21"),
        (text_pdf(*"x" * 101), Caps(document_pages=100), "100 pages, found 101"),
    ):
        with pytest.raises(MediaError, match=message) as error:
            parts(data, caps=caps)
        assert error.value.reason == "size"
    assert len(parts(LETTER, caps=Caps(document_pages=2, document_bytes=len(LETTER)))) == 6


def test_an_error_has_the_number_of_the_document() -> None:
    chat = [Message.user(Document(LETTER), "a", Document(LETTER[:300])), Message.assistant("b")]
    with pytest.raises(MediaError) as error:
        expand(chat, lambda part: expanded_part(part, CAPS, BOX))
    assert (error.value.part, error.value.number) == ("document", 1)


def locked(password: str) -> bytes:
    writer, out = pypdf.PdfWriter(io.BytesIO(LETTER)), io.BytesIO()
    writer.encrypt(password, "owner", algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def test_an_encrypted_pdf_needs_its_password() -> None:
    with pytest.raises(MediaError, match="encrypted") as error:
        parts(locked("secret"))
    assert error.value.reason == "content"
    assert len(parts(locked(""))) == 6  # everybody may read it


# Files that programs never write


def deflated(content: bytes) -> bytes:
    return stream(zlib.compress(content, 9), b"/Filter/FlateDecode")


LOOP = pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>")
DEEP = pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"[" * 100_000)
NO_PAGES = pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>")
FALSE_COUNT = text_pdf("x").replace(b"/Count 1", b"/Count 2147483647")
NEGATIVE_COUNT = text_pdf("x").replace(b"/Count 1", b"/Count -5")
HIMSELF = pages([stream(b"/X Do")], resources=b"/XObject<</X 5 0 R>>").replace(
    b"<</Length 5>>",
    b"<</Length 5/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 5 0 R>>>>>>",
)
OBJECT_STREAM = pdf(
    b"<</Type/Catalog/Pages 2 0 R>>",
    stream(b"2 0 <</Type/Pages>>", b"/Type/ObjStm/N 100000000/First 4/Extends 2 0 R"),
)
STRANGE = {
    "pages of themselves": LOOP,
    "brackets without end": DEEP,
    "no pages": NO_PAGES,
    "pages that aren't there": FALSE_COUNT,
    "a negative number of pages": NEGATIVE_COUNT,
    "a form in itself": HIMSELF,
    "object streams without end": OBJECT_STREAM,
    "a page of no size": text_pdf("x", box=b"0 0 0 0"),
    "a page of a size that is no number": text_pdf("x", box=b"0 0 nan inf"),
    "a page of a negative size": text_pdf("x", box=b"0 0 -595 -842"),
    "a hundred megabytes of blanks": pages([deflated(b" " * (100 << 20))]),
    "a gigabyte in two streams": pages(
        [stream(zlib.compress(zlib.compress(bytes(1 << 28))), b"/Filter[/FlateDecode/FlateDecode]")]
    ),
    "an image of a billion pixels": pages(
        [stream(b"/I Do")],
        resources=b"/XObject<</I 6 0 R>>",
    ).replace(
        b"xref\n",
        b"6 0 obj\n"
        + stream(
            zlib.compress(bytes(9)),
            b"/Type/XObject/Subtype/Image/Width 65000/Height 65000"
            b"/BitsPerComponent 8/ColorSpace/DeviceRGB/Filter/FlateDecode",
        )
        + b"\nendobj\nxref\n",
        1,
    ),
    "JavaScript": pdf(
        b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(while (true) {})>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1/MediaBox[0 0 99 99]>>",
        b"<</Type/Page/Parent 2 0 R/AA<</O<</S/JavaScript/JS(while (true) {})>>>>>>",
    ),
    "a link to a program": pdf(
        b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/Launch/F(/bin/sh)>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1/MediaBox[0 0 99 99]>>",
        b"<</Type/Page/Parent 2 0 R/Contents<</F(/etc/passwd)/FFilter/None>>>>",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_files_are_read_or_refused(name: str) -> None:
    """In one line."""
    try:
        assert all("passwd" not in text and "root" not in text for text in texts(STRANGE[name]))
    except MediaError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


def test_work_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "CPU_SECONDS", 1)
    monkeypatch.setattr(isolated, "CPU_SECONDS_PER_PAGE", 0)
    shading = b"0 0 m " + b"595 842 l 0 842 l 595 0 l 0 0 l " * 300_000 + b"f*"
    with pytest.raises(MediaError, match="too long") as error:
        parts(pages([deflated(shading)]))
    assert error.value.reason == "decoder"


def test_a_page_of_many_forms_is_refused_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the document could have a hundred pages."""
    monkeypatch.setattr(isolated, "PAGE_CPU_SECONDS", 1)
    monkeypatch.setattr(isolated, "DOCUMENT_TURN_SECONDS", 0)
    started: list[int] = []
    process = isolated.DecoderProcess

    def watched(*arguments: Any, cpu_seconds: int, **options: Any) -> isolated.DecoderProcess:
        started.append(cpu_seconds)
        return process(*arguments, cpu_seconds=cpu_seconds, **options)

    monkeypatch.setattr(isolated, "DecoderProcess", watched)
    data = nested_forms_pdf()
    assert len(data) < 2000
    for forked in (True, False):
        with pytest.raises(MediaError, match="too long") as error:
            parts(data, forked=forked)
        assert error.value.reason == "decoder"
    assert started == [1, 1]


def test_the_time_of_a_document_is_limited_by_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "DOCUMENT_TURN_SECONDS", 0)
    monkeypatch.setattr(isolated, "CPU_SECONDS", 1)
    monkeypatch.setattr(isolated, "CPU_SECONDS_PER_PAGE", 0)
    data = nested_forms_pdf(4, 12, b"0 0 m 595 842 l 0 842 l 595 0 l " * 9 + b"f*", count=90)
    with pytest.raises(MediaError, match="too long"):
        parts(data)


def test_the_pages_of_a_long_document_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from several processes, and decoding may pause in between."""
    data = text_pdf("one", "two", "three", "four")
    expected = parts(data)
    monkeypatch.setattr(isolated, "DOCUMENT_TURN_SECONDS", 0)
    results = list(document_parts(Document(data, "a.pdf"), CAPS, BOX, decoders=STARTED[0]))
    assert [part for page in results for part in page] == expected
    assert [bool(page) for page in results] == [True, False, True, False, True, False, True]
    with pytest.raises(MediaError, match="10 characters"):
        parts(data, caps=Caps(document_characters=10))


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "DOCUMENT_MEMORY", 1 << 20)
    with pytest.raises(MediaError) as error:
        parts(LETTER)
    assert error.value.reason in ("decoder", "content")


@pytest.mark.parametrize("step", few([128, 7], 1))
def test_truncated_files_are_read_or_refused(step: int) -> None:
    outcomes = set()
    for data in (LETTER, scanned_pdf("red"), locked("")):
        for length in range(0, len(data), step):
            try:
                parts(data[:length])
                outcomes.add("read")
            except MediaError as error:
                outcomes.add(error.reason)
                assert error.reason in ("content", "kind")
    assert "content" in outcomes


def test_pdfium_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "find_spec", lambda name: None)
    with pytest.raises(MediaError, match="pypdfium2; pip install") as error:
        parts(LETTER, forked=False)
    assert error.value.reason == "kind"
