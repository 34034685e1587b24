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
from pathlib import Path

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


def zipped(head: bytes) -> bytes:
    """Six gigabytes after `head`, in six megabytes."""
    return gzip.compress(head) + gzip.compress(b"a" * (64 << 20), 1) * 96


def packed(name: str, head: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(zipped(head))
        return folder / name

    return write


def nulls(folder: Path) -> Path:
    """A batch of two billion nulls, which takes no bytes."""
    batch = pa.record_batch({"text": pa.nulls(2**31 - 1)})
    with pa.ipc.new_stream(folder / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    assert (folder / "a.arrow").stat().st_size < 1000
    return folder / "a.arrow"


def list_of_nulls(folder: Path) -> Path:
    values = pa.ListArray.from_arrays(pa.array([0, 2**28], pa.int32()), pa.nulls(2**28))
    batch = pa.record_batch({"text": values})
    with pa.ipc.new_stream(folder / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    return folder / "a.arrow"


def packed_batch(folder: Path) -> Path:
    batch = pa.record_batch({"text": ["a" * (50 << 20)] * 2})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(folder / "a.arrow", batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return folder / "a.arrow"


def long_message(folder: Path) -> Path:
    """A head that says how long the message is."""
    (folder / "a.arrow").write_bytes(b"\xff" * 4 + struct.pack("<i", 2**31 - 1) + b"x" * 100)
    return folder / "a.arrow"


def one_text(folder: Path) -> Path:
    """A dictionary of one text, which each row repeats."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), ["a" * (100 << 20)])
    pq.write_table(pa.table({"text": text}), folder / "a.parquet", compression="zstd")
    assert (folder / "a.parquet").stat().st_size < 40_000
    return folder / "a.parquet"


def texts(folder: Path) -> Path:
    """The pages of the texts as they are."""
    table = pa.table({"text": ["a" * (100 << 20)] * 3})
    pq.write_table(table, folder / "a.parquet", compression="zstd", use_dictionary=False)
    return folder / "a.parquet"


def lists(folder: Path) -> Path:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 9000, pa.int32()), ["a" * (1 << 20)])
    table = pa.table({"text": pa.ListArray.from_arrays(pa.array([0, 9000], pa.int32()), text)})
    pq.write_table(table, folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def packed_archive(folder: Path) -> Path:
    """An archive that warcio unpacks, by its name an unpacked one."""
    (folder / "a.warc").write_bytes(gzip.compress(b"WARC/1.0\r\nX: " + b"a" * (64 << 20), 1) * 48)
    return folder / "a.warc"


def long_name(type: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        member = tarfile.TarInfo("a")
        member.type, member.size = type, 6 << 30
        head = member.tobuf(tarfile.GNU_FORMAT)
        (folder / "a.tar.gz").write_bytes(zipped(head))
        return folder / "a.tar.gz"

    return write


def many_headers(folder: Path) -> Path:
    """Each header announces the next one."""
    with tarfile.open(folder / "a.tar", "w") as archive:
        for _ in range(5000):
            member = tarfile.TarInfo("a")
            member.type, member.size = tarfile.XHDTYPE, 0
            archive.addfile(member, io.BytesIO())
    return folder / "a.tar"


def many_values(folder: Path) -> Path:
    (folder / "a.jsonl").write_bytes(b'{"text": [' + b"[]," * (5 << 20) + b"[]]}")
    return folder / "a.jsonl"


def many_fields(folder: Path) -> Path:
    """A row that a quoted line end continues."""
    (folder / "a.csv").write_text('text\n"\n' + f'"{"," * (3 << 20)}"\n' * 3)
    return folder / "a.csv"


def json_texts(*columns: str) -> Callable[[Path], Path]:
    """A row whose columns are JSON, and its last column many lists."""

    def write(folder: Path) -> Path:
        row = {name: ["[]"] for name in columns} | {columns[-1]: ["[[]" + ",[]" * (20 << 20) + "]"]}
        pq.write_table(
            pa.table(row), folder / "a.parquet", compression="zstd", use_dictionary=False
        )
        return folder / "a.parquet"

    return write


def deep(name: str, head: bytes = b"") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(head + b"[" * 200_000)
        return folder / name

    return write


def energon(split: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / ".nv-meta").mkdir()
        (folder / ".nv-meta/split.yaml").write_text(split)
        with tarfile.open(folder / "0.tar", "w"):
            pass
        return folder

    return write


ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "jsonl": (packed("a.jsonl.gz", b'{"text": "'), r"a\.jsonl\.gz, line 1: "),
    "json": (packed("a.json.gz", b'[{"text": "b"}, {"text": "'), r"a\.json\.gz, row 2: "),
    "csv": (packed("a.csv.gz", b'text\n"'), r"a\.csv\.gz, line 2: "),
    "tsv": (packed("a.tsv.gz", b"path\tsentence\n"), r"a\.tsv\.gz, line 2: "),
    "text": (packed("a.txt.gz", b""), r"a\.txt\.gz: "),
    "archive": (packed("a.warc.gz", b"WARC/1.0\r\nWARC-Type: response\r\nX: "), "headers"),
    "packed archive": (packed_archive, r"a\.warc: .*gzip"),
    "lines": (packed("a.csv.gz", b"text\n" + b'"\n' * 100), r"a\.csv\.gz, line \d+: "),
    "fields": (many_fields, r"a\.csv, line \d: .* columns"),
    "values": (many_values, r"a\.jsonl, line 1: .* values"),
    "messages": (json_texts("messages"), r"a\.parquet, row 1: .* values"),
    "tools": (json_texts("messages", "tools"), r"a\.parquet, row 1: .* values"),
    "nulls": (nulls, r"row 1: expected `messages`"),
    "list of nulls": (list_of_nulls, r"row 1: expected at most"),
    "packed batch": (packed_batch, r"a\.arrow: .*compression"),
    "long message": (long_message, r"a\.arrow: .*metadata"),
    "one text": (one_text, r"a\.parquet, row 1: "),
    "texts": (texts, r"a\.parquet: row group 0: "),
    "lists": (lists, r"a\.parquet, row 1: expected at most"),
    "GNU name": (long_name(tarfile.GNUTYPE_LONGNAME), r"a\.tar\.gz .*header"),
    "pax name": (long_name(tarfile.XHDTYPE), r"a\.tar\.gz .*header"),
    "headers": (many_headers, r"a\.tar .*recursion"),
    "deep JSON": (deep("a.jsonl"), r"a\.jsonl, line 1: "),
    "deep manifest": (deep("a.jsonl", b'{"audio_filepath": "a", "text": "b"}\n'), "line 1: "),
    "deep list": (deep("a.json"), r"a\.json.*: "),
    "aliases": (energon(f"a0: &a0 [x]\n{ALIASES}exclude: *a11\n"), r"split\.yaml: .*alias"),
    "deep YAML": (energon("[" * 20_000), r"split\.yaml: "),
    "braces": (energon("split_parts: {train: ['{0..99999999999}.tar']}"), r"split\.yaml: .*braces"),
    "many braces": (energon(f"split_parts: {{train: ['{'{0..99}' * 9}']}}"), "braces"),
    "long braces": (energon(f"split_parts: {{train: ['{{0..9999}}{'a' * 99_000}']}}"), "braces"),
    "exclude": (energon("split_parts: {train: ['0.tar']}\nexclude: 5"), r"split\.yaml: .*exclude"),
    "tar": (energon("split_parts: {train: [5]}"), r"split\.yaml: .*found 5"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_do_not_take_all_memory(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, message = BOMBS[bomb]
    if "archive" in bomb:
        pytest.importorskip("warcio")
    for module in ("row_files", "limits"):  # the usual one takes seconds
        monkeypatch.setattr(f"polyphi.data.{module}.MAX_TEXT", 16 << 20)
    path = write(tmp_path)
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


def test_braces_of_a_path() -> None:
    with pytest.raises(ValueError, match="braces"):
        sources.find("a/{0..99999999999}.tar")
    with pytest.raises(ValueError, match="braces"):
        sources.find("a/{0..%s}.tar" % ("9" * 10_000))
    with pytest.raises(ValueError, match="no file"):
        sources.find("a/" + "{0..0}" * 3000)
    with pytest.raises(ValueError, match="braces"):
        sources.find("a/{3..1}{0..99999999999}.tar")


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
    with pytest.raises(ValueError, match="line 1: .*10 characters"):
        list(user_data.read(tmp_path / "a.jsonl"))
