"""Shards: parquet files that any Hub user can open, with a manifest that says what is in them and where it came from.

A row has `id`, `messages` (role and typed parts, media by index), `media` (kind, bytes, mime), `source`, `licence` and
`meta` (JSON). A corpus is a folder of splits: `CORPUS/SPLIT/*.parquet` and `CORPUS/SPLIT/manifest.json`.

>>> write(Path("data/digits/train"), samples, pipeline="...")       # whole or absent
>>> Shards("data/digits/train")[0].messages
"""

import hashlib
import json
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.chat import Audio, Image, Message, Part, Text

PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("media", pa.int32())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (
            "messages",
            pa.list_(
                pa.struct(
                    [("role", pa.string()), ("parts", pa.list_(PART)), ("tools", pa.string())]
                )
            ),
        ),
        (
            "media",
            pa.list_(
                pa.struct([("kind", pa.string()), ("bytes", pa.binary()), ("mime", pa.string())])
            ),
        ),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("meta", pa.string()),
    ]
)
MIME = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "audio/wav",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
}
ROWS_PER_SHARD = 4096
ROWS_PER_GROUP = 64
GROUPS_KEPT = 512


@dataclass(frozen=True)
class Sample:
    """One example: a conversation whose media are encoded bytes, its origin and licence, and free `meta` (JSON
    values).

    A raw document is a single message of role "document". Conversations end with the assistant's answer. Preference
    samples carry the dispreferred answer in `meta["rejected"]`. Test samples carry `meta["task"]`.
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    licence: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return self.messages[-1].text

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last message."""
        return self.messages[:-1]


def document(id: str, text: str, source: str, licence: str, **meta: Any) -> Sample:
    """A raw text as a sample."""
    return Sample(id, (Message("document", (Text(text),)),), source, licence, meta)


def _mime(data: bytes) -> str:
    return next(
        (m for magic, m in MIME.items() if data.startswith(magic)), "application/octet-stream"
    )


def _to_row(sample: Sample) -> dict[str, Any]:
    media: list[dict[str, Any]] = []

    def part(p: Part) -> dict[str, Any]:
        if isinstance(p, Text):
            return {"type": "text", "text": p.text, "media": None}
        if not isinstance(p.source, bytes):
            raise ValueError(
                f"sample {sample.id}: media in shards are encoded bytes, found {type(p.source).__name__}"
            )
        kind = "image" if isinstance(p, Image) else "audio"
        media.append({"kind": kind, "bytes": p.source, "mime": _mime(p.source)})
        return {"type": kind, "text": None, "media": len(media) - 1}

    messages = [
        {"role": m.role, "parts": [part(p) for p in m.parts], "tools": m.tools}
        for m in sample.messages
    ]
    return {
        "id": sample.id,
        "messages": messages,
        "media": media,
        "source": sample.source,
        "licence": sample.licence,
        "meta": json.dumps(sample.meta, ensure_ascii=False, sort_keys=True),
    }


def _from_row(row: dict[str, Any]) -> Sample:
    def part(p: dict[str, Any]) -> Part:
        if p["type"] == "text":
            return Text(p["text"])
        data = row["media"][p["media"]]["bytes"]
        return Image(data) if p["type"] == "image" else Audio(data)

    messages = tuple(
        Message(m["role"], tuple(part(p) for p in m["parts"]), m["tools"]) for m in row["messages"]
    )
    return Sample(row["id"], messages, row["source"], row["licence"], json.loads(row["meta"]))


def write(
    folder: Path, samples: Iterable[Sample], *, pipeline: str, parents: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a split, whole or not at all, and return its manifest: rows, SHA-256 per shard, licences, sources, the
    hash of the pipeline that made it, and the parents (manifest hashes) it came from. An existing split is
    replaced."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    licences: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        path = partial / f"{len(shards):05d}.parquet"
        pq.write_table(
            pa.Table.from_pylist(rows, SCHEMA),
            path,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            use_dictionary=False,
        )
        shards.append(
            {
                "file": path.name,
                "rows": len(rows),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
        rows.clear()

    for sample in samples:
        rows.append(_to_row(sample))
        licences[sample.licence] += 1
        sources[sample.source] += 1
        if len(rows) == ROWS_PER_SHARD:
            flush()
    if rows or not shards:
        flush()
    manifest = {
        "rows": sum(s["rows"] for s in shards),
        "shards": shards,
        "pipeline": pipeline,
        "parents": list(parents),
        "licences": dict(sorted(licences.items())),
        "sources": dict(sorted(sources.items())),
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    for path in partial.iterdir():
        with path.open("rb") as f:
            os.fsync(f.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return manifest


class Shards(Sequence[Sample]):
    """Random access to a split. Rows are read by row group; the groups read last stay in memory, as Arrow tables."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.exists():
            raise ValueError(
                f"no shards at {self.folder}: expected a manifest.json there; build the corpus first"
            )
        self.manifest: dict[str, Any] = json.loads(path.read_text())
        self._starts = [0]
        for shard in self.manifest["shards"]:
            self._starts.append(self._starts[-1] + shard["rows"])
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.folder}")
        shard = next(i for i, start in enumerate(self._starts[1:]) if index < start)
        group, offset = divmod(index - self._starts[shard], ROWS_PER_GROUP)
        return _from_row(self._read(shard, group).slice(offset, 1).to_pylist()[0])

    def _read(self, shard: int, group: int) -> pa.Table:
        if (shard, group) not in self._groups:
            with pq.ParquetFile(self.folder / self.manifest["shards"][shard]["file"]) as file:
                self._groups[shard, group] = file.read_row_group(group)
            if len(self._groups) > GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((shard, group))
        return self._groups[shard, group]

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def verify(self) -> None:
        """Raise if a shard's bytes are not those the manifest names."""
        for shard in self.manifest["shards"]:
            found = hashlib.sha256((self.folder / shard["file"]).read_bytes()).hexdigest()
            if found != shard["sha256"]:
                raise ValueError(
                    f"{self.folder / shard['file']} is damaged: expected SHA-256 {shard['sha256']}, found {found}"
                )
