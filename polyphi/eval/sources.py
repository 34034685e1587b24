"""Public data where people have it: a folder that holds data sets as the Hub names them, or the Hub itself.

>>> data = Data(Path("/data"))
>>> for row in data.rows(Source("lmms-lab/ChartQA", ("data/test-*.parquet",), "the Hub")): ...

Below the folder, a data set of the Hub lies at OWNER/NAME with the files that it has there (`hf download OWNER/NAME
--repo-type dataset --local-dir DIR/OWNER/NAME` makes it so); others under the name that their source says. No script of
a data set is ever run.
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

from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images in base64 are long
READABLE = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Source:
    """A data set: its folder below DIR, glob patterns of the files that must be in it, and where one gets it.

    `fields` are columns that its rows must have and `rows` how many there should be, which `check` looks at.
    `hub` says whether `name` is one of the Hub's data sets, which can be fetched from there; `quoted` that its TSV
    files quote fields as CSV does (VLMEvalKit's do, Common Voice's and FLEURS's don't), and `header` names the columns
    of TSV files that don't name them (FLEURS's); `single` says that each of its JSON files is one row. `licence` is
    that of its samples.
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
        """A sample of the data set, with the reference answer last."""
        messages = [prompt] if isinstance(prompt, Message) else prompt
        reference = Message.assistant(answer)
        return Sample(id, (*messages, reference), self.name, self.licence, dict(meta or {}))


class Missing(ValueError):
    """Files that are not there; the message says which, and where they come from."""


class Data:
    """Where data sets lie: below `root`, or on the Hub (root None), from which only the files asked for are fetched."""

    def __init__(self, root: Path | None) -> None:
        if root is not None and not root.is_dir():
            raise ValueError(f"--data {root}: expected a folder that holds data sets")
        self.root = root

    def folder(self, source: Source) -> Path:
        """The folder of a data set, whose files are there. Raises Missing."""
        folder = self._fetched(source) if self.root is None else self.root / source.name
        for pattern in source.files:
            if not any(folder.glob(pattern)):
                raise Missing(
                    f"{folder / pattern} is missing; {source.name} comes from {source.where}"
                )
        return folder

    def has(self, source: Source) -> bool:
        """Whether all its files lie below the folder: for data that one can do without, which aren't fetched."""
        return self.root is not None and all(
            any((self.root / source.name).glob(pattern)) for pattern in source.files
        )

    def _fetched(self, source: Source) -> Path:
        if not source.hub:
            raise Missing(
                f"{source.name} isn't on the Hub: it comes from {source.where}; get it and give its folder by --data"
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
                f"{source.name} can't be fetched from the Hub: {message[0][:200]}"
            ) from None

    def files(self, source: Source, pattern: str | None = None) -> list[Path]:
        """The files of a pattern (by default of all of the source's), by name."""
        folder = self.folder(source)
        patterns = source.files if pattern is None else (pattern,)
        return [path for p in patterns for path in sorted(folder.glob(p))]

    def rows(
        self, source: Source, pattern: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows of the readable files among them."""
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
    """Rows of a parquet, JSON lines (also if named .json), JSON (a list, or an object of rows by id), CSV or TSV file,
    gzipped or not; a few at a time where the format allows it. `quoted`: a TSV whose fields are quoted as a CSV's are;
    `header`: the columns of one that doesn't name them; `single`: a JSON file that is one row."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
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
            yield from _text_rows(text, kind, path, quoted, header, single)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON at line {error.lineno}: {error.msg}") from None


def _text_rows(
    text: IO[str], kind: str, path: Path, quoted: bool, header: Sequence[str], single: bool
) -> Iterator[dict[str, Any]]:
    if kind == ".jsonl":
        yield from (json.loads(line) for line in text if line.strip())
    elif kind == ".json":
        try:
            whole = json.load(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
            text.seek(0)  # JSON lines by another name
            yield from (json.loads(line) for line in text if line.strip())
            return
        if single:
            yield whole
        elif isinstance(whole, Mapping):
            for key, row in whole.items():
                yield {"id": key, **(row if isinstance(row, Mapping) else {"value": row})}
        else:
            yield from whole
    elif kind == ".csv":
        yield from csv.DictReader(text)
    elif kind == ".tsv":
        names = header or None
        if quoted:
            yield from csv.DictReader(text, names, delimiter="\t")
        else:
            yield from csv.DictReader(text, names, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        raise ValueError(f"{path}: expected one of {', '.join(READABLE)}")


def check(data: Data, source: Source) -> list[str]:
    """What is wrong with a data set, in words: files that are missing, columns, counts."""
    try:
        readable = [p for p in data.files(source) if p.name.removesuffix(".gz").endswith(READABLE)]
        messages, count = [], 0
        for path in readable:
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq

                file = pq.ParquetFile(path)
                names, rows = set(file.schema_arrow.names), file.metadata.num_rows
            else:
                names, rows = set[str](), 0
                for row in read_rows(path, None, source.quoted, source.header, source.single):
                    names |= set() if names else set(row)
                    rows += 1
            count += rows
            if lacking := sorted(set(source.fields) - names):
                messages.append(
                    f"{path}: expected the columns {', '.join(lacking)}, found {', '.join(sorted(names))}"
                )
        if source.rows is not None and readable and count != source.rows:
            messages.append(f"{source.name}: expected {source.rows:,} rows, found {count:,}")
        return messages
    except (ValueError, OSError) as error:
        return [str(error)]


# What rows hold ----------------------------------------------------------------------------------


def image_of(value: Any, root: Path | None = None) -> Image:
    """The image in a cell of a row: the Hub's {"bytes", "path"}, bytes, base64 text, or a path below `root`."""
    return Image(_media(value, root, "picture"))


def audio_of(value: Any, root: Path | None = None) -> Audio:
    """The audio in a cell of a row, likewise."""
    return Audio(_media(value, root, "clip"))


def _media(value: Any, root: Path | None, what: str) -> bytes | Path:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and root is not None and len(value) < 4096:
        path = root / value
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{value!r} leads out of {root}")
        if path.is_file():
            return path
        raise Missing(f"{path} is missing, a {what} that a row names")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", value):
        import base64

        return base64.b64decode(value)
    raise ValueError(f"expected a {what}, found {value!r:.80}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet, as the Hub has them, or as JSON lines, as the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
