"""Shards: parquet files that any Hub user can open, with a manifest of their contents and origin.

A row has `id`, `messages` (role and typed parts, media by index), `media` (kind, bytes, mime, sha256), `source`,
`licence`, `meta` (JSON) and its own `sha256`. A corpus is a folder of splits: `CORPUS/SPLIT/*.parquet` and
`CORPUS/SPLIT/manifest.json`. It may be local or at any address that fsspec supports; then only the requested row groups
are fetched.

>>> write(Path("data/digits/train"), samples, pipeline="...")       # whole or absent
>>> Shards("data/digits/train")[0].messages
>>> Shards("hf://datasets/OWNER/NAME/digits/train")[0].messages     # also s3://BUCKET/..., with the extra `s3`
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.data.sample import Sample
from polyphi.data.schema import SCHEMA, missing_fields
from polyphi.media.file_types import IMAGE_FORMATS, sniff
from polyphi.runtime.files import remove, sha256, whole_folder
from polyphi.runtime.installation import pip_install
from polyphi.types.messages import Message
from polyphi.types.parts import Document, Part, Text, Video, media_part

AUDIO_MIME = {"WAV": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg"}
ARROW_DAMAGE = re.compile("checksum|thrift|flatbuffers|Page was|corrupt|decompress")
"""In the messages of Arrow's OSErrors for files that are damaged, not unreadable."""
SPLIT_FILE = re.compile(r"\d{5,}\.parquet|manifest\.json")
"""Name of a file of a split."""
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 64
GROUP_BYTES = 4 << 20
"""A row group, the unit that is read or fetched for a sample, ends at 64 rows or 4 MiB of media, whichever is first."""
CACHE_BYTES = 512 << 20
"""Bytes of row groups cached in memory per corpus and process."""
MAX_CACHED_FOOTERS = 256
"""Shards whose footers (offsets of row groups) are cached."""


def document(id: str, text: str, source: str, licence: str, **meta: Any) -> Sample:
    """Return a raw text as a sample."""
    return Sample(id, (Message("document", (Text(text),)),), source, licence, meta)


def _mime(data: bytes) -> str:
    file_type = sniff(data)
    if file_type in IMAGE_FORMATS:
        return f"image/{file_type.lower()}"
    return AUDIO_MIME.get(file_type, "application/octet-stream")


def to_row(sample: Sample) -> dict[str, Any]:
    """Return a sample as a row of `SCHEMA`. Raises ValueError if media aren't encoded bytes."""
    media: list[dict[str, Any]] = []

    def part(p: Part) -> dict[str, Any]:
        if isinstance(p, Text):
            return {"type": "text", "text": p.text, "media": None}
        if isinstance(p, Video | Document):
            raise ValueError(
                f"sample {sample.id}: shards hold pictures, found a {type(p).__name__.lower()}; take frames or pages "
                "of it as Images"
            )
        if not isinstance(p.source, bytes):
            raise ValueError(
                f"sample {sample.id}: media in shards are encoded bytes, found {type(p.source).__name__}"
            )
        media.append(
            {
                "kind": p.modality,
                "bytes": p.source,
                "mime": _mime(p.source),
                "sha256": hashlib.sha256(p.source).hexdigest(),
            }
        )
        return {"type": p.modality, "text": None, "media": len(media) - 1}

    messages = [
        {"role": m.role, "parts": [part(p) for p in m.parts], "tools": m.tools}
        for m in sample.messages
    ]
    row = {
        "id": sample.id,
        "messages": messages,
        "media": media,
        "source": sample.source,
        "licence": sample.licence,
        "meta": json.dumps(sample.meta, ensure_ascii=False, sort_keys=True),
    }
    return row | {"sha256": row_hash(row)}


def row_hash(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a row's JSON with sorted keys, with the `sha256` of each medium instead of its bytes."""
    media = [{key: m[key] for key in ("kind", "mime", "sha256")} for m in row["media"]]
    content = {key: value for key, value in row.items() if key != "sha256"} | {"media": media}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _check_media(row: Mapping[str, Any]) -> None:
    for number, medium in enumerate(row["media"]):
        expected = medium.get("sha256")
        if expected and (actual := hashlib.sha256(medium["bytes"]).hexdigest()) != expected:
            raise ValueError(
                f"sample {row['id']}: medium {number} is damaged: its bytes should have SHA-256 {expected}, "
                f"found {actual}"
            )


def _from_row(row: Mapping[str, Any]) -> Sample:
    def part(p: dict[str, Any]) -> Part:
        if p["type"] == "text":
            return Text(p["text"])
        data = row["media"][p["media"]]["bytes"]
        return media_part(p["type"], data)

    messages = tuple(
        Message(m["role"], tuple(part(p) for p in m["parts"]), m["tools"]) for m in row["messages"]
    )
    return Sample(row["id"], messages, row["source"], row["licence"], json.loads(row["meta"]))


def write(
    folder: Path, samples: Iterable[Sample], *, pipeline: str, parents: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a split atomically and return its manifest: rows, bytes and SHA-256 per shard, licences, sources, the hash
    of the pipeline that made it, and its parents (manifest hashes). Replaces an existing split; raises ValueError for a
    folder with other files."""
    others = (
        [p.name for p in folder.iterdir() if not SPLIT_FILE.fullmatch(p.name)]
        if folder.exists()
        else []
    )
    if others:
        raise ValueError(
            f"{folder} has files that aren't of a split: {', '.join(sorted(others)[:5])}; they would be deleted: use "
            "another folder, or move them away"
        )
    shards: list[dict[str, Any]] = []
    licences: Counter[str] = Counter()
    sources: Counter[str] = Counter()

    def counted() -> Iterator[dict[str, Any]]:
        for sample in samples:
            licences[sample.licence] += 1
            sources[sample.source] += 1
            yield to_row(sample)

    rows = counted()
    with whole_folder(folder) as partial:
        while (shard := list(islice(rows, ROWS_PER_SHARD))) or not shards:
            path = partial / f"{len(shards):05d}.parquet"
            size = _write_shard(path, shard)
            shards.append(
                {"file": path.name, "rows": len(shard), "bytes": size, "sha256": sha256(path)}
            )
        manifest = {
            "rows": sum(s["rows"] for s in shards),
            "shards": shards,
            "pipeline": pipeline,
            "parents": list(parents),
            "licences": dict(sorted(licences.items())),
            "sources": dict(sorted(sources.items())),
        }
        _write_manifest(partial, manifest)
    return manifest


def join(
    folder: Path, parts: Sequence[Path], history: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Join parts, in order, into one split atomically, delete them, and return its manifest, which has the fields of
    `history`, too. `parts` are from the same pipeline and parents."""
    manifests = [json.loads((part / "manifest.json").read_text()) for part in parts]
    shards: list[dict[str, Any]] = []
    counts = {
        key: dict(sorted(sum((Counter(m[key]) for m in manifests), Counter()).items()))
        for key in ("licences", "sources")
    }
    with whole_folder(folder) as partial:
        for part, manifest in zip(parts, manifests, strict=True):
            for shard in manifest["shards"]:
                # An empty split also has a shard.
                if shard["rows"] or (part == parts[-1] and not shards):
                    name = f"{len(shards):05d}.parquet"
                    os.link(part / shard["file"], partial / name)
                    shards.append(shard | {"file": name})
        rows = sum(s["rows"] for s in shards)
        manifest = manifests[0] | {"rows": rows, "shards": shards} | counts | dict(history)
        _write_manifest(partial, manifest)
    for part in parts:
        remove(part)
    return manifest


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def _write_shard(path: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write rows in groups and return their bytes in memory."""
    size = 0
    with pq.ParquetWriter(
        path, SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for group in _row_groups(rows):
            table = pa.Table.from_pylist(group, SCHEMA)
            writer.write_table(table)
            size += table.nbytes
    return size


def _row_groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    remaining = GROUP_BYTES
    for row in rows:
        size = sum(len(m["bytes"]) for m in row["media"])
        if group and (len(group) == ROWS_PER_GROUP or size > remaining):
            yield group
            group, remaining = [], GROUP_BYTES
        group.append(row)
        remaining -= size
    if group:
        yield group


def join_path(folder: Path | str, *names: str) -> Path | str:
    """Return the path of a subfolder or file of a local folder, or its address (such as
    `hf://datasets/OWNER/NAME/...`)."""
    if "://" in str(folder):
        return "/".join((str(folder).rstrip("/"), *names))
    return Path(folder, *names)


class Shards(Sequence[Sample]):
    """Random access to a split. Rows are read by row group; the last groups are cached as Arrow tables.

    `folder` is a path, or an address that fsspec supports. Raises ValueError with the name of the file if there is no
    manifest, if a shard is missing, truncated or lacks columns, or if an address needs a missing package.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = join_path(folder)
        self.manifest = self._read_manifest()
        self._starts = [0]
        for shard in self.manifest["shards"]:
            self._starts.append(self._starts[-1] + shard["rows"])
        self._footers: OrderedDict[int, tuple[Any, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0  # bytes of `_groups`

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for worker processes, without caches."""
        return self.__dict__ | {
            "_footers": OrderedDict(),
            "_groups": OrderedDict(),
            "_cached": 0,
        }

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.sample(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @property
    def window(self) -> int:
        """Number of neighbouring rows that can be read in any order without reading a row group twice: those that fill
        half of the cache, or all (also if an older manifest lacks their sizes)."""
        size = sum(shard.get("bytes", 0) for shard in self.manifest["shards"])
        if size <= CACHE_BYTES:
            return len(self)
        rows = len(self) * CACHE_BYTES // (2 * size)
        return max(1, rows // ROWS_PER_GROUP) * ROWS_PER_GROUP

    def sample(self, index: int) -> Sample:
        """Return a row as a sample. Raises ValueError if the row is damaged (`parse`)."""
        return self.parse(self.row(index))

    def id(self, index: int) -> str:
        """Return the id of a row, also of a damaged one."""
        table, row = self._locate(index)
        return str(table["id"][row].as_py())

    def row(self, index: int) -> dict[str, Any]:
        """Return a row of the parquet file."""
        table, row = self._locate(index)
        values: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
        return values

    def _locate(self, index: int) -> tuple[pa.Table, int]:
        """Return the row group of a row, and the row's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.folder}")
        shard = bisect_right(self._starts, index) - 1
        offset = index - self._starts[shard]
        starts = self._footer(shard)[1]
        group = bisect_right(starts, offset) - 1
        return self._group(shard, group), offset - starts[group]

    @staticmethod
    def parse(row: Mapping[str, Any]) -> Sample:
        """Return a row as a sample. Raises ValueError if it is damaged: media with another hash, invalid JSON, parts
        without their medium."""
        try:
            _check_media(row)
            return _from_row(row)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"sample {row['id']}: the row is damaged ({type(error).__name__}: {error})"
            ) from None

    def verify(self, samples: bool = False) -> None:
        """Raise ValueError if a shard's hash differs from the manifest; with `samples`, also if that of a row or medium
        differs from its `sha256` (older shards have none)."""
        for shard in self.manifest["shards"]:
            with self._describe_damage(shard["file"]), self._open(shard["file"]) as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != shard["sha256"]:
                raise ValueError(
                    f"{join_path(self.folder, shard['file'])} is damaged: expected SHA-256 {shard['sha256']}, "
                    f"found {actual}"
                )
        for index in range(len(self) if samples else 0):
            row = self.row(index)
            _check_media(row)
            if row.get("sha256") and (actual := row_hash(row)) != row["sha256"]:
                raise ValueError(
                    f"row {index} ({row['id']}) of {self.folder} is damaged: expected SHA-256 {row['sha256']}, "
                    f"found {actual}"
                )

    def _read_manifest(self) -> dict[str, Any]:
        try:
            with self._open("manifest.json") as file:
                text = file.read()
            manifest: dict[str, Any] = json.loads(text)
            if not all({"file", "rows"} <= set(shard) for shard in manifest["shards"]):
                raise KeyError("shards")
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"no shards at {self.folder}: expected a manifest.json there; build the corpus first"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{join_path(self.folder, 'manifest.json')}: expected a manifest written by polyphi, "
                f"found something else ({type(error).__name__}: {error})"
            ) from None
        return manifest

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        """Yield an open file of this split. A local one is Arrow's own: its threads release a Python file after the
        read that needed it, and if the interpreter ends in between, the process aborts."""
        if isinstance(self.folder, Path):
            with pa.OSFile(str(self.folder / file), "rb") as stream:
                yield stream
            return
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.folder)
        except ImportError as error:
            extra = pip_install("s3") if self.folder.startswith("s3") else "install it"
            raise ValueError(f"{self.folder} needs another package: {error}; {extra}") from None
        try:
            # Arrow requests whole column chunks: a read-ahead cache would fetch unused bytes.
            with system.open(f"{path}/{file}", "rb", cache_type="none") as stream:
                yield stream
        except (OSError, ValueError):
            raise
        except (
            Exception
        ) as error:  # each of those libraries has different exceptions for network errors
            raise OSError(
                f"{join_path(self.folder, file)} can't be read ({type(error).__name__}: {error}); check the address "
                "and the network"
            ) from error

    @contextmanager
    def _describe_damage(self, file: str) -> Iterator[None]:
        """Replace errors of a damaged or missing shard by ValueError with an explanation; other OSErrors pass
        through."""
        try:
            yield
        except FileNotFoundError:
            raise ValueError(
                f"{join_path(self.folder, file)} is missing, though it is in the manifest; build or copy the "
                "corpus again"
            ) from None
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            if isinstance(error, OSError) and not ARROW_DAMAGE.search(str(error)):
                raise
            raise ValueError(
                f"{join_path(self.folder, file)}: expected a whole parquet file, found a damaged or truncated one "
                f"({str(error).splitlines()[0]}); build or copy the corpus again"
            ) from None

    def _footer(self, shard: int) -> tuple[Any, list[int]]:
        """Return a shard's parquet metadata, and the first row of each of its row groups."""
        if shard not in self._footers:
            entry = self.manifest["shards"][shard]
            with self._describe_damage(entry["file"]), self._open(entry["file"]) as file:
                metadata = pq.read_metadata(file)
                if missing := missing_fields(metadata.schema.to_arrow_schema(), SCHEMA):
                    raise ValueError(
                        f"{join_path(self.folder, entry['file'])} isn't a shard: it lacks {', '.join(missing)}; "
                        f"expected the columns {', '.join(SCHEMA.names)}"
                    )
            if metadata.num_rows != entry["rows"]:
                raise ValueError(
                    f"{join_path(self.folder, entry['file'])}: expected {entry['rows']} rows as in the manifest, found "
                    f"{metadata.num_rows}; build or copy the corpus again"
                )
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._footers[shard] = (metadata, [0, *accumulate(rows)][:-1])
            if len(self._footers) > MAX_CACHED_FOOTERS:
                self._footers.popitem(last=False)
        self._footers.move_to_end(shard)
        return self._footers[shard]

    def _group(self, shard: int, group: int) -> pa.Table:
        if (shard, group) not in self._groups:
            name = self.manifest["shards"][shard]["file"]
            with self._describe_damage(name), self._open(name) as file:
                # One request for neighbouring columns of a remote file.
                remote = not isinstance(self.folder, Path)
                parquet = pq.ParquetFile(
                    file,
                    metadata=self._footer(shard)[0],
                    pre_buffer=remote,
                    page_checksum_verification=True,
                )
                table = parquet.read_row_group(group)
            self._groups[shard, group] = table
            self._cached += table.nbytes
            while self._cached > CACHE_BYTES and len(self._groups) > 1:
                self._cached -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end((shard, group))
        return self._groups[shard, group]
