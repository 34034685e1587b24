"""Public data sets: in a folder with the Hub's names, or on the Hub.

>>> data = Data(Path("/data"))
>>> for row in data.rows(BenchmarkSource("lmms-lab/ChartQA", ("data/test-*.parquet",), "the Hub")): ...

A data set of the Hub is at OWNER/NAME in the folder, with the same files (`hf download OWNER/NAME --repo-type dataset
--local-dir DIR/OWNER/NAME`), others at the `name` of their source. Scripts of data sets are never run.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polyphi.data.sample import Sample
from polyphi.runtime.files import whole_file
from polyphi.text.quantity import quantity
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images in base64 are long
READABLE = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class BenchmarkSource:
    """A data set: its folder below DIR, glob patterns of its required files, and where to get it.

    `check` compares `fields`, its required columns, and `rows`, their number. `hub`: `name` is a data set of the Hub;
    `quoted`: its TSV files quote fields like CSV (VLMEvalKit's do, Common Voice's and FLEURS's don't); `header`: the
    columns of TSV files without a header (FLEURS's); `single`: each of its JSON files is one row; `licence`: that of
    its samples.
    """

    name: str
    files: Sequence[str]
    where: str
    fields: Sequence[str] = ()
    rows: int | None = None
    hub: bool = True
    quoted: bool = False
    single: bool = False
    header: Sequence[str] = ()
    licence: str = ""

    def sample(
        self,
        id: str,
        prompt: Message | Sequence[Message],
        answer: str,
        meta: Mapping[str, Any] | None = None,
    ) -> Sample:
        """Return a sample of the data set, with the reference answer last."""
        messages = [prompt] if isinstance(prompt, Message) else prompt
        reference = Message.assistant(answer)
        return Sample(id, (*messages, reference), self.name, self.licence, dict(meta or {}))


class Missing(ValueError):
    """Missing files; the message has their paths and where to get them."""


class Data:
    """Data sets below `root`, or on the Hub (`root` None), from which only required files are downloaded."""

    def __init__(self, root: Path | None) -> None:
        if root is not None and not root.is_dir():
            raise ValueError(f"--data {root}: expected a folder with data sets, found no folder")
        self.root = root

    def folder(self, source: BenchmarkSource) -> Path:
        """Return the folder of a data set. Raises Missing if a file is missing."""
        folder = self._download(source) if self.root is None else self.root / source.name
        for pattern in source.files:
            if not any(folder.glob(pattern)):
                raise Missing(
                    f"{folder / pattern} is missing; {source.name} comes from {source.where}"
                )
        return folder

    def has(self, source: BenchmarkSource) -> bool:
        """Whether all files of a data set are below `root`: for optional data, which aren't downloaded."""
        return self.root is not None and all(
            any((self.root / source.name).glob(pattern)) for pattern in source.files
        )

    def _download(self, source: BenchmarkSource) -> Path:
        if not source.hub:
            raise Missing(
                f"{source.name} isn't on the Hub: it comes from {source.where}; get it and set --data to its folder"
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(
                    source.name, repo_type="dataset", allow_patterns=list(source.files)
                )
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            message = str(error).strip().splitlines() or [type(error).__name__]
            raise Missing(
                f"{source.name} can't be downloaded from the Hub: {message[0][:200]}"
            ) from None

    def files(self, source: BenchmarkSource, pattern: str | None = None) -> list[Path]:
        """Return the files of a pattern (by default all of the source's), sorted by name."""
        folder = self.folder(source)
        patterns = source.files if pattern is None else (pattern,)
        return [path for p in patterns for path in sorted(folder.glob(p))]

    def rows(
        self,
        source: BenchmarkSource,
        pattern: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of those `files` that have a suffix in `READABLE`."""
        for path in self.files(source, pattern):
            if path.name.removesuffix(".gz").endswith(READABLE):
                yield from read_rows(path, columns, source.quoted, source.header, source.single)


def read_rows(
    path: Path,
    columns: Sequence[str] | None = None,
    quoted: bool = False,
    header: Sequence[str] = (),
    single: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet, JSON lines (also if named .json), JSON (a list, or an object of rows by id), CSV or
    TSV file, gzipped or not, in batches if the format allows it. `quoted`, `header` and `single` as in
    `BenchmarkSource`."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        for batch in file.iter_batches(batch_size=32, columns=columns):
            yield from batch.to_pylist()
        return
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as text
    ):
        try:
            yield from _text_rows(text, suffix, path, quoted, header, single)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: expected JSON, found an error in line {error.lineno}: {error.msg}"
            ) from None


def _text_rows(
    text: IO[str], suffix: str, path: Path, quoted: bool, header: Sequence[str], single: bool
) -> Iterator[dict[str, Any]]:
    if suffix == ".jsonl":
        yield from (json.loads(line) for line in text if line.strip())
    elif suffix == ".json":
        try:
            content = json.load(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
            text.seek(0)  # JSON lines named .json
            yield from (json.loads(line) for line in text if line.strip())
            return
        if single:
            yield content
        elif isinstance(content, Mapping):
            for key, row in content.items():
                yield {"id": key, **(row if isinstance(row, Mapping) else {"value": row})}
        else:
            yield from content
    elif suffix == ".csv":
        yield from csv.DictReader(text)
    elif suffix == ".tsv":
        names = header or None
        if quoted:
            yield from csv.DictReader(text, names, delimiter="\t")
        else:
            yield from csv.DictReader(text, names, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        raise ValueError(f"{path}: expected one of {', '.join(READABLE)}")


def contents(data: Data, source: BenchmarkSource) -> Iterator[tuple[Path, set[str], int]]:
    """Yield the readable files of a data set with their columns and numbers of rows."""
    for path in data.files(source):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            file = pq.ParquetFile(path)
            yield path, set(file.schema_arrow.names), file.metadata.num_rows
        elif path.name.removesuffix(".gz").endswith(READABLE):
            names, rows = set[str](), 0
            for row in read_rows(path, None, source.quoted, source.header, source.single):
                names |= set() if names else set(row)
                rows += 1
            yield path, names, rows


def check(data: Data, source: BenchmarkSource) -> list[str]:
    """Return messages about problems of a data set: missing files and columns, other numbers of rows."""
    try:
        messages, counts = [], []
        for path, names, rows in contents(data, source):
            counts.append(rows)
            if missing := sorted(set(source.fields) - names):
                messages.append(
                    f"{path}: expected the columns {', '.join(missing)}, found {', '.join(sorted(names))}"
                )
        if source.rows is not None and counts and sum(counts) != source.rows:
            messages.append(
                f"{source.name}: expected {quantity(source.rows, 'row')}, found {sum(counts):,}"
            )
        return messages
    except (ValueError, OSError) as error:
        return [str(error)]


# Media in rows -----------------------------------------------------------------------------------


def image_of(value: Any, root: Path | None = None) -> Image:
    """Return the image in a cell of a row: the Hub's {"bytes", "path"}, bytes, base64 text, or a path below `root`."""
    return Image(_media(value, root, "an image"))


def audio_of(value: Any, root: Path | None = None) -> Audio:
    """Return the audio in a cell of a row, in the formats of `image_of`."""
    return Audio(_media(value, root, "an audio file"))


def _media(value: Any, root: Path | None, what: str) -> bytes | Path:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and root is not None and len(value) < 4096:
        path = root / value
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"expected a path below {root}, found {value!r}")
        if path.is_file():
            return path
        raise Missing(f"{path} is missing, {what} of a row")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", value):
        import base64

        return base64.b64decode(value)
    raise ValueError(f"expected {what}, found {value!r:.80}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet, or, for other suffixes of the path, as JSON lines; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), partial)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            partial.write_text("".join(lines), encoding="utf-8")
