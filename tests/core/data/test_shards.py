"""Shards: round trips, local and remote, any parquet reader, errors for damage."""

import hashlib
import io
import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards, document, row_hash
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image


def png(seed: int, side: int = 8) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Picture.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def samples(count: int = 150) -> list[Sample]:
    def one(i: int) -> Sample:
        if i % 3 == 0:
            return document(str(i), f"text {i} \u00e9", "here", "CC0", task="t")
        media: list[Any] = [Image(png(i)), *([Audio(b"RIFF" + bytes([i]))] if i % 2 else [])]
        messages = (Message.user(*media, f"what is {i}?"), Message.assistant(f"{i}"))
        return Sample(str(i), messages, "there", "MIT", {"rejected": "no", "n": i})

    return [one(i) for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards.write(tmp_path / "c" / "train", samples(), pipeline="p", parents=["q"])
    return tmp_path / "c" / "train"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Yield the address of the same split in fsspec's memory file system."""
    far = f"memory://{uuid.uuid4()}/c/train"
    system, path = fsspec.core.url_to_fs(far)
    system.put(str(folder) + "/", path + "/", recursive=True)
    yield far
    system.rm(path, recursive=True)


def test_rows_come_back_as_they_were(folder: Path) -> None:
    read = Shards(folder)
    assert list(read) == samples() and len(read) == 150
    assert read[149] == samples()[149] and Shards(str(folder))[3] == samples()[3]
    read.verify(samples=True)
    assert list(pickle.loads(pickle.dumps(read))) == samples()
    with pytest.raises(IndexError):
        read[150]


def test_far_shards_are_the_same(address: str) -> None:
    read = Shards(address)
    assert list(read) == samples()
    read.verify(samples=True)


def test_of_far_shards_only_what_is_asked_for_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(fsspec.implementations.local.LocalFileSystem):
        protocol = "counted"
        cachable = False
        fetched = 0

        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            class File(io.FileIO):
                def readinto(self, buffer: Any) -> int | None:
                    read = super().readinto(buffer)
                    Counted.fetched += read or 0
                    return read

                def read(self, size: int = -1) -> bytes:
                    data = super().read(size)
                    Counted.fetched += len(data)
                    return data

            return File(path, mode)

    fsspec.register_implementation("counted", Counted, clobber=True)
    many = [
        Sample(str(i), (Message.user(Image(png(i, 60))), Message.assistant("x")), "", "")
        for i in range(256)
    ]
    shards.write(tmp_path / "t", many, pipeline="")
    whole = sum(file.stat().st_size for file in (tmp_path / "t").iterdir())
    read = Shards(f"counted://{tmp_path}/t")
    assert read[130] == many[130]
    assert Counted.fetched < 0.35 * whole  # one of four row groups, and the footer
    before = Counted.fetched
    assert [read[i] for i in range(128, 192)] == many[128:192]
    assert Counted.fetched == before, "a row group in memory isn't fetched again"


def test_any_parquet_reader_reads_them_and_the_hashes_can_be_checked(folder: Path) -> None:
    table = pq.read_table(folder / "00000.parquet")
    assert table.column_names == shards.SCHEMA.names and table.num_rows == 150
    for row in table.to_pylist():
        assert row["sha256"] == row_hash(row)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == 150 and manifest["licences"] == {"CC0": 50, "MIT": 100}
    assert manifest["shards"][0]["bytes"] > 0


def test_row_groups_are_bounded_by_rows_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 1000)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 100)
    shards.write(tmp_path / "t", samples(), pipeline="")
    metadata = pq.read_metadata(tmp_path / "t" / "00000.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 100 and 1 < max(sizes) < 20
    assert list(Shards(tmp_path / "t")) == samples()


def test_arrow_is_handed_no_python_file_for_a_local_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads would release the file after the read: a process that ends just then aborts."""
    files: list[Any] = []
    for name in ("ParquetFile", "read_metadata"):
        read = getattr(pq, name)
        monkeypatch.setattr(
            pq, name, lambda file, *a, read=read, **k: files.append(file) or read(file, *a, **k)
        )
    assert list(Shards(folder)) and files
    assert all(
        isinstance(file, pa.NativeFile) and not isinstance(file, pa.PythonFile) for file in files
    )


def test_the_cache_is_bounded_and_the_window_fits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.write(
        tmp_path / "t", [document(str(i), "x" * 500, "", "") for i in range(640)], pipeline=""
    )
    read = Shards(tmp_path / "t")
    assert read.window == 640
    monkeypatch.setattr(shards, "CACHE_BYTES", 200_000)
    row = read.manifest["shards"][0]["bytes"] / 640
    assert read.window % 64 == 0 and 50_000 < row * read.window <= 100_000
    list(read)
    assert 100_000 < read._cached <= 200_000
    assert read._cached == sum(t.nbytes for t in read._groups.values())


def test_older_shards_without_hashes_are_read(folder: Path) -> None:
    table = pq.read_table(folder / "00000.parquet").drop_columns(["sha256"])
    media = [
        [{k: v for k, v in medium.items() if k != "sha256"} for medium in media]
        for media in table["media"].to_pylist()
    ]
    column = table.column_names.index("media")
    kind = pa.list_(
        pa.struct([f for f in shards.SCHEMA.field("media").type.value_type if f.name != "sha256"])
    )
    table = table.set_column(column, "media", pa.array(media, kind))
    pq.write_table(table, folder / "00000.parquet", row_group_size=7)  # and groups of any size
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][0]["bytes"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    read = Shards(folder)
    assert list(read) == samples() and read.window == 150
    with pytest.raises(ValueError, match="SHA-256"):
        read.verify()


@pytest.mark.parametrize("remote", [False, True])
def test_errors_name_the_damage(remote: bool, folder: Path, address: str) -> None:
    location = address if remote else folder
    system, path = fsspec.core.url_to_fs(str(location))

    def replace(name: str, data: bytes) -> None:
        system.pipe_file(f"{path}/{name}", data)

    def first() -> Sample:
        return Shards(location)[0]

    whole = system.cat_file(f"{path}/00000.parquet")
    replace("00000.parquet", whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"00000\.parquet: .*damaged"):
        first()
    out = io.BytesIO()
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), out)
    replace("00000.parquet", out.getvalue())
    with pytest.raises(ValueError, match="messages, media, source, licence, meta"):
        first()
    out = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(whole)).slice(0, 9), out)
    replace("00000.parquet", out.getvalue())
    with pytest.raises(ValueError, match=r"expected 150 rows .*found 9"):
        first()
    system.rm_file(f"{path}/00000.parquet")
    with pytest.raises(ValueError, match=r"00000\.parquet .*missing"):
        first()
    replace("manifest.json", b'{"rows": 3}')
    with pytest.raises(ValueError, match=r"manifest\.json: expected"):
        first()
    system.rm_file(f"{path}/manifest.json")
    with pytest.raises(ValueError, match=r"no shards"):
        first()


@pytest.mark.parametrize("seed", range(40))
def test_a_bit_that_flipped_changes_no_row(seed: int, folder: Path) -> None:
    """Pages have checksums: a bit somewhere in a shard is either of no use, or told as damage."""
    expected, path, random = list(Shards(folder)), folder / "00000.parquet", Random(seed)
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    try:
        assert list(Shards(folder)) == expected
    except ValueError as error:
        assert "00000.parquet" in str(error)


def test_addresses_that_need_a_package_or_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3fs.*\[s3\]"):
        Shards("s3://bucket/c/train")
    with pytest.raises(ValueError, match="nowhere"):
        Shards("nowhere://c/train")


def test_a_network_that_is_away_is_an_os_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(Exception):
        pass

    def away(*_: Any, **__: Any) -> Any:
        raise Away("no route")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", away)
    with pytest.raises(OSError, match=r"manifest\.json .*Away: no route"):
        Shards(address)


def test_damaged_samples_are_told_one_by_one(folder: Path) -> None:
    row = Shards(folder).row(1)
    row["media"][0]["bytes"] = row["media"][0]["bytes"][:-1] + b"?"
    with pytest.raises(ValueError, match="sample 1: medium 0 is damaged"):
        Shards.parse(row)
    for damage in ({"meta": "{"}, {"media": []}, {"messages": None}, {"messages": [None]}):
        with pytest.raises(ValueError):
            Shards.parse(Shards(folder).row(1) | damage)
    rows = pq.read_table(folder / "00000.parquet").to_pylist()
    rows[4]["messages"][0]["parts"][-1]["text"] = "what is 5?"
    pq.write_table(pa.Table.from_pylist(rows, shards.SCHEMA), folder / "00000.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(
        (folder / "00000.parquet").read_bytes()
    ).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    Shards(folder).verify()
    with pytest.raises(ValueError, match=r"row 4 \(4\) of .* is damaged"):
        Shards(folder).verify(samples=True)


def test_a_folder_with_other_files_is_no_split(tmp_path: Path) -> None:
    """A user's folder may have the path that a corpus has in the folder of a run."""
    split = tmp_path / "data" / "calls" / "train"
    shards.write(split, [], pipeline="first")
    shards.write(split, [], pipeline="second")
    (split / "rows.jsonl").write_text("my own")
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        shards.write(split, [], pipeline="third")
    assert (split / "rows.jsonl").read_text() == "my own"
