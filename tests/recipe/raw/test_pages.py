"""Documents of every file type are read; damaged files are reported and skipped."""

import builtins
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from polyphi.data.documents import html_text, pdf_text
from polyphi.data.shards import Sample, Shards
from polyphi_recipe.raw.pages import read
from tests.core.train.small import write_corpora

BODY = (
    "Dogs are animals that have lived and worked with people for thousands of years.",
    "They bark when somebody comes, and they like company more than anything else.",
)
PAGE = (
    "<html><head><title>On dogs</title></head><body><nav><a href='/'>Start</a> <a href='/c'>Contact</a></nav>"
    f"<article><h1>On dogs</h1><p>{BODY[0]}</p><p>{BODY[1]}</p></article><footer>All rights reserved 2020</footer>"
    "</body></html>"
)


def pdf(*pages: str) -> bytes:
    """Return a PDF with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn))
    out, offsets = io.BytesIO(b""), []
    out.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(
        b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    )
    return out.getvalue()


def warc(path: Path, *pages: tuple[str, str, str]) -> None:
    with gzip.open(path, "wb") as file:
        writer = WARCWriter(file, gzip=False)
        for url, kind, body in pages:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    url, "response", payload=io.BytesIO(body.encode()), http_headers=headers
                )
            )


def folder(path: Path) -> Path:
    """Create a folder with one document per file type."""
    path.mkdir()
    (path / "a.html").write_text(PAGE)
    (path / "b.pdf").write_bytes(pdf("First page.", "Second page."))
    (path / "c.txt").write_text("Plain text.\n")
    (path / "d.jsonl").write_text(json.dumps({"text": "A row.", "url": "u", "licence": "CC0"}))
    pq.write_table(pa.table({"text": ["Another row."], "title": ["Top"]}), path / "e.parquet")
    warc(
        path / "f.warc.gz",
        ("http://dogs.example/", "text/html; charset=utf-8", PAGE.replace("On dogs", "Dogs")),
        ("http://dogs.example/dog.png", "image/png", "not a page"),
    )
    with gzip.open(path / "g.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "A packed row."}) + "\n\n")
    (path / "h.exe").write_text("not to be read")
    return path


def of(*patterns: str | Path, **options) -> list[Sample]:
    return list(read(patterns, source="here", licence="MIT", **options))


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    samples = of(folder(tmp_path / "in"))
    texts = {s.meta["file"]: s.answer for s in samples}
    assert texts == {
        "a.html": "\n".join(("On dogs", *BODY)),
        "b.pdf": "First page.\n\nSecond page.",
        "c.txt": "Plain text.",
        "d.jsonl": "A row.",
        "e.parquet": "Top\nAnother row.",
        "f.warc.gz": "\n".join(("Dogs", *BODY)),
        "g.jsonl.gz": "A packed row.",
    }
    assert {s.licence for s in samples} == {"MIT", "CC0"} and {s.source for s in samples} == {
        "here"
    }
    assert (
        next(s for s in samples if s.meta["file"] == "f.warc.gz").meta["url"]
        == "http://dogs.example/"
    )


def test_parts_are_all_of_it_once(tmp_path: Path) -> None:
    path = folder(tmp_path / "in")
    parts = [of(path, part=(i, 3)) for i in range(3)]
    assert all(parts)
    assert sorted(s.id for p in parts for s in p) == sorted(s.id for s in of(path))


def test_shards_are_read_as_they_are(tmp_path: Path) -> None:
    path = write_corpora(tmp_path) / "pictures" / "train"
    assert of(path) == list(Shards(path))
    assert of(path, part=(1, 2)) == list(Shards(path))[1::2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"%PDF-1.4 and no more", "expected a whole, unlocked PDF"),
        ("a.jsonl", b'{"text": "fine"}\n{"tex', "line 2 is no JSON"),
        ("a.jsonl", b'{"words": "x"}', "needs a `text`, found the columns words"),
        ("a.jsonl", b"[1]", "expected an object, found list"),
        ("a.jsonl.gz", b"not packed", "gzip"),
        ("a.parquet", b"PAR1", "arquet"),
        ("a.warc", b"nothing of the kind", "expected a WARC"),
        ("a.txt", b"\xff\xfe\xfa", "can't decode"),
    ],
)
def test_a_damaged_file_is_reported_and_skipped(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("whole")
    messages: list[str] = []
    samples = of(tmp_path, report=messages.append)
    assert samples[-1].answer == "whole"
    assert len(messages) == 1 and name in messages[0] and reason in messages[0]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: .*html"):
        of(tmp_path / "nowhere")


def test_a_missing_part_of_lxml_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip 23 leaves lxml_html_clean out; lxml's own error has no name that the command line could look up."""
    importing = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "trafilatura":
            raise ImportError("lxml.html.clean module is now a separate project lxml_html_clean.")
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="lxml_html_clean") as missing:
        html_text(PAGE)
    assert missing.value.name == "lxml_html_clean"


def test_a_page_without_text_is_none() -> None:
    assert html_text("<html><body><script>1</script></body></html>") is None
    assert pdf_text(pdf("", ""))[1] == ["", ""]
