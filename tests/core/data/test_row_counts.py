"""The number of rows of a file, estimated by a part of it: later rows are longer than the first ones."""

import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from polyphi.data.row_counts import estimated_rows
from polyphi.data.sources import find

ROWS, BUDGET = 9000, 1 << 20


def words(number: int) -> str:
    return "wörd " * (5 + number % 17 + (30 if number > ROWS / 3 else 0))


def row(number: int) -> dict[str, Any]:
    turns = [{"id": n, "from": "human", "value": "a"} for n in range(number % 4)]
    return {"id": f"{number}", "turns": turns, "question": "What?", "answer": words(number)}


def lines(rows: list[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def table() -> bytes:
    """With quoted line ends, commas and quotes in two of three rows."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["question", "answer"])
    for n in range(ROWS):
        end = ('\nand "more",\n', "", "\n\n")[n % 3]
        writer.writerow([f"What{end}?", words(n) + end])
    return text.getvalue().encode()


def tar(count: int = ROWS // 15) -> bytes:
    """In folders, each with an entry; one of two rows has three members, one of nine a long name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, size: int) -> None:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"x" * size))

        for n in range(count):
            folder = f"part{n // 100}"
            if n % 100 == 0:
                entry = tarfile.TarInfo(folder)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            name = f"{folder}/{'ä' * 120 if n % 9 == 0 else ''}{n:05d}"
            add(f"{name}.jpg", 300 * (1 + n % 7 + (10 if n > count / 3 else 0)))
            add(f"{name}.txt", 20)
            if n % 2:
                add(f"{name}.json", 700)
    return out.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], int]] = {
    "a.jsonl": (lambda: lines([row(n) for n in range(ROWS)]), ROWS),
    "small.jsonl": (lambda: lines([row(n) for n in range(30)]) + b"\n\n[]", 31),
    "a.json": (lambda: json.dumps([row(n) for n in range(ROWS)]).encode(), ROWS),
    "pretty.json": (
        lambda: json.dumps([row(n) for n in range(ROWS)], indent=2, ensure_ascii=False).encode(),
        ROWS,
    ),
    "small.json": (lambda: json.dumps([row(n) for n in range(30)], indent=1).encode(), 30),
    "manifest.jsonl": (
        lambda: lines([{"audio_filepath": f"{n}.wav", "text": words(n)} for n in range(ROWS)]),
        ROWS,
    ),
    "a.csv": (table, ROWS),
    "train.tsv": (
        lambda: (
            b"path\tsentence\n" + b"".join(f"{n}.mp3\t{words(n)}\n".encode() for n in range(ROWS))
        ),
        ROWS,
    ),
    "a.tar": (tar, ROWS // 15),
    "small.tar": (lambda: tar(30), 30),
}


def compressed(content: bytes, ending: str) -> bytes:
    if ending == ".zst":
        return bytes(pa.Codec("zstd").compress(content, asbytes=True))
    return gzip.compress(content, 1) if ending else content


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_the_number_of_rows_is_close(name: str, packed: str, tmp_path: Path) -> None:
    make, count = FILES[name]
    content = make()
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(compressed(content, packed))
    [file] = find(str(path))
    exact = name.startswith("small") or (packed and len(content) < 4 * BUDGET)
    estimate = estimated_rows(file, BUDGET)
    assert estimate == pytest.approx(count, rel=0.004 if exact else 0.05)
    assert exact or len(content) > 1.5 * BUDGET  # else it would be counted
    assert estimated_rows(file) == pytest.approx(count, rel=0.001)  # within the default


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_members_that_are_longer_than_the_budget(packed: str, tmp_path: Path) -> None:
    """Only the header of the first one was read, as if the rest were as short."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for n in range(6):
            member = tarfile.TarInfo(f"{n}.flac")
            member.size = 1 << 20
            archive.addfile(member, io.BytesIO(random.Random(n).randbytes(member.size)))
    (tmp_path / f"a.tar{packed}").write_bytes(compressed(out.getvalue(), packed))
    [file] = find(str(tmp_path / f"a.tar{packed}"))
    for budget in (1 << 16, 1 << 19, 1 << 20):
        assert estimated_rows(file, budget) == pytest.approx(6, rel=0.2)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_list_in_another_encoding_is_counted(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.json{packed}"
    path.write_bytes(compressed(json.dumps([row(n) for n in range(30)]).encode("utf-16"), packed))
    for budget in (10, BUDGET):
        assert estimated_rows(*find(str(path)), budget) == 30


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    assert estimated_rows(*find(str(tmp_path / "a.csv"))) == 0


def test_arrow_is_counted(tmp_path: Path) -> None:
    table = pa.table({"text": [words(n) for n in range(300)]})
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    [file] = find(str(tmp_path))
    assert estimated_rows(file) == 300


@pytest.mark.parametrize("content", [b"{", b"[1, 2", b'{"a": 1}'])
def test_what_is_no_list_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        estimated_rows(*find(str(tmp_path / "a.json")))


def test_a_row_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nno JSON\n[]\n')
    assert estimated_rows(*find(str(tmp_path / "a.jsonl"))) == 3


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_tar_whose_members_have_no_size_ends(packed: str, tmp_path: Path) -> None:
    content = bytearray(tar(2))
    member = tarfile.TarInfo("a.txt")
    member.size = -512 * 3
    header = member.tobuf(tarfile.GNU_FORMAT)
    content[512:1024] = header
    path = tmp_path / f"a.tar{packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"a\.txt"):
        estimated_rows(*find(str(path)))
