"""Files of a few bytes that stand for gigabytes: each is refused, or a row of it, within a limit of memory."""

import gzip
import io
import json
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyphi.data import sources, user_data
from polyphi.data.row_counts import estimated_rows

MEMORY = 1 << 30
"""Bytes that a reader may take beside those of the test."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """A limit of the data of this process, which ends a reader of a bomb with a MemoryError."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    used = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData")]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used[0] + MEMORY if used else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@cache
def gigabytes() -> bytes:
    """Three gigabytes of one letter, in three megabytes."""
    return gzip.compress(b"a" * (64 << 20), 1) * 48


def zipped(head: bytes) -> bytes:
    return gzip.compress(head) + gigabytes()


def arrow(values: pa.Array, compression: str | None = None) -> bytes:
    out, batch = pa.BufferOutputStream(), pa.record_batch({"text": values})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(out.getvalue())


def parquet(dictionary: bool = True, **columns: Any) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out, compression="zstd", use_dictionary=dictionary)
    return bytes(out.getvalue())


def repeated(count: int, size: int) -> pa.DictionaryArray:
    """A dictionary of one text, which each row repeats."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["a" * size])


def one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def long_name(type: bytes) -> bytes:
    """A member whose name has six gigabytes."""
    member = tarfile.TarInfo("a")
    member.type, member.size = type, 6 << 30
    return zipped(member.tobuf(tarfile.GNU_FORMAT))


def many_headers() -> bytes:
    """Each header announces the next one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for _ in range(5000):
            member = tarfile.TarInfo("a")
            member.type, member.size = tarfile.XHDTYPE, 0
            archive.addfile(member, io.BytesIO())
    return out.getvalue()


LISTS = "[[]" + ",[]" * (5 << 20) + "]"
FIELDS = f'"{"," * (3 << 19)}"\n'.encode() * 3
"""A row of CSV, which a quoted line end continues."""
WARC = b"WARC/1.0\r\nWARC-Type: response\r\nX: "
SPLIT = ".nv-meta/split.yaml"
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "jsonl": ("a.jsonl.gz", lambda: zipped(b'{"text": "'), r"a\.jsonl\.gz, line 1: "),
    "json": ("a.json.gz", lambda: zipped(b'[{"text": "b"}, {"text": "'), r"a\.json\.gz, row 2: "),
    "csv": ("a.csv.gz", lambda: zipped(b'text\n"'), r"a\.csv\.gz, line 2: "),
    "tsv": ("a.tsv.gz", lambda: zipped(b"path\tsentence\n"), r"a\.tsv\.gz, line 2: "),
    "text": ("a.txt.gz", lambda: zipped(b""), r"a\.txt\.gz: "),
    "archive": ("a.warc.gz", lambda: zipped(WARC), "headers"),
    "packed archive": (
        "a.warc",
        lambda: gzip.compress(WARC + b"a" * (64 << 20), 1) * 16,
        r"a\.warc: .*gzip",
    ),
    "lines": ("a.csv.gz", lambda: zipped(b"text\n" + b'"\n' * 100), r"a\.csv\.gz, line \d+: "),
    "fields": ("a.csv", lambda: b'text\n"\n' + FIELDS, r"a\.csv, line \d: .* columns"),
    "values": ("a.jsonl", lambda: b'{"text": %s}' % LISTS.encode(), r"line 1: .* values"),
    "messages": ("a.parquet", lambda: parquet(False, messages=[LISTS]), "row 1: .* values"),
    "tools": (
        "a.parquet",
        lambda: parquet(False, messages=["[]"], tools=[LISTS]),
        "row 1: .* values",
    ),
    "two billion nulls": ("a.arrow", lambda: arrow(pa.nulls(2**31 - 1)), "row 1: .*`messages`"),
    "list of nulls": ("a.arrow", lambda: arrow(one_list(pa.nulls(2**28))), "row 1: .*at most"),
    "packed batch": ("a.arrow", lambda: arrow(pa.array(["a"]), "zstd"), r"a\.arrow: .*compression"),
    "long message": (
        "a.arrow",
        lambda: b"\xff" * 4 + struct.pack("<i", 2**31 - 1) + b"x" * 100,
        r"a\.arrow: .*metadata",
    ),
    "one text": ("a.parquet", lambda: parquet(text=repeated(20, 100 << 20)), "row 1: "),
    "texts": ("a.parquet", lambda: parquet(False, text=["a" * (100 << 20)] * 3), "row group 0: "),
    "lists": (
        "a.parquet",
        lambda: parquet(text=one_list(repeated(1000, 1 << 20))),
        "row 1: .*at most",
    ),
    "GNU name": ("a.tar.gz", lambda: long_name(tarfile.GNUTYPE_LONGNAME), r"a\.tar\.gz .*header"),
    "pax name": ("a.tar.gz", lambda: long_name(tarfile.XHDTYPE), r"a\.tar\.gz .*header"),
    "headers": ("a.tar", many_headers, r"a\.tar .*recursion"),
    "deep JSON": ("a.jsonl", lambda: b"[" * 200_000, r"a\.jsonl, line 1: "),
    "deep manifest": (
        "a.jsonl",
        lambda: b'{"audio_filepath": "a", "text": "b"}\n' + b"[" * 200_000,
        "line 1: ",
    ),
    "deep list": ("a.json", lambda: b"[" * 200_000, r"a\.json.*: "),
    **{
        name: (SPLIT, text.encode, rf"split\.yaml: .*{message}")
        for name, text, message in (
            ("aliases", f"a0: &a0 [x]\n{ALIASES}exclude: *a11\n", "alias"),
            ("deep YAML", "[" * 20_000, ""),
            ("braces", "split_parts: {train: ['{0..99999999999}.tar']}", "braces"),
            ("many braces", f"split_parts: {{train: ['{'{0..99}' * 9}']}}", "braces"),
            ("long braces", f"split_parts: {{train: ['{{0..9999}}{'a' * 99_000}']}}", "braces"),
            ("exclude", "split_parts: {train: ['0.tar']}\nexclude: 5", "exclude"),
            ("tar", "split_parts: {train: [5]}", "found 5"),
        )
    },
}
"""The name of a file, its bytes, and what the error names."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_do_not_take_all_memory(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, message = BOMBS[bomb]
    if "archive" in bomb:
        pytest.importorskip("warcio")
    for module in ("row_files", "limits"):  # the usual one takes seconds
        monkeypatch.setattr(f"polyphi.data.{module}.MAX_TEXT", 16 << 20)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content())
    if name == SPLIT:
        path = tmp_path
        with tarfile.open(path / "0.tar", "w"):
            pass
    with limited_memory(), pytest.raises(ValueError, match=message):
        for file in sources.find(str(path)):
            next(iter(user_data.read(file.path)), None)
            for location, row in sources.rows(file):
                if isinstance(row, ValueError):
                    raise ValueError(f"{location}: {row}")


def test_a_chunk_of_a_page_is_unpacked_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("warcio")
    monkeypatch.setattr("polyphi.data.documents.html_text", lambda page, _: ("", f"{len(page):,}"))
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    chunk = (packer.compress(b" " * (64 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * 32
    headers = (
        b"Content-Type: text/html\r\nContent-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n"
    )
    page = b"HTTP/1.1 200 OK\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (headers, len(chunk), chunk)
    record = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
    record += b"%%bContent-Length: %d\r\n\r\n%%b\r\n\r\n" % len(page)
    (tmp_path / "a.warc").write_bytes(record % (b"WARC-Target-URI: http://a.org\r\n", page))
    with limited_memory():
        ((_, row),) = sources.rows(*sources.find(str(tmp_path / "a.warc")))
    assert row["text"] == "20,971,520"
    (tmp_path / "a.warc").write_bytes(record % (b"", page))
    with pytest.raises(ValueError, match=r"a\.warc"):
        list(sources.rows(*sources.find(str(tmp_path / "a.warc"))))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a/{0..99999999999}.tar", "braces"),
        (f"a/{{0..{'9' * 10_000}}}.tar", "braces"),
        ("a/{3..1}{0..99999999999}.tar", "braces"),
        (f"a/{'{0..0}' * 3000}", "no file"),
    ],
    ids=lambda text: text[:20],
)
def test_braces_of_a_path(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources.find(path)


def test_long_fields_of_csv_are_read(tmp_path: Path) -> None:
    """Python's own limit is 131,072 characters."""
    text = "a" * 200_000
    (tmp_path / "a.csv").write_text(f'question,answer\n?,"{text}"\n')
    (one,) = user_data.read(tmp_path / "a.csv")
    assert one.answer == text
    (tmp_path / "train.tsv").write_text(f"path\tsentence\na.wav\t{text}\n")
    ((_, row),) = sources.rows(*sources.find(str(tmp_path / "train.tsv")))
    assert row["answer"] == text


def test_a_file_is_estimated_by_its_readable_rows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for n in range(4):
            for name, data in ((f"{n}.txt", b"x"), (f"{n}.json", b"{" if n else b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    [file] = sources.find(str(tmp_path / "a.tar"))
    assert estimated_rows(file) >= 1


def test_texts_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyphi.data.formats.MAX_CHARACTERS", 10)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a" * 11}))
    with pytest.raises(ValueError, match=r"line 1: .*10 characters"):
        list(user_data.read(tmp_path / "a.jsonl"))
