"""Files of rows: JSON lines, JSON lists and parquet, local or on the Hugging Face hub.

>>> [file] = find("cats.jsonl")
>>> for location, row in rows(file): ...            # ("cats.jsonl, line 1", b'{"question": ...')
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.data.addresses import ending, is_remote, open_file
from polyphi.data.arrow_files import parquet_rows
from polyphi.data.limits import MAX_TEXT, check_values
from polyphi.runtime import inputs

HUB = "hf://"
CONVERTED_BRANCH = "@refs%2Fconvert%2Fparquet"
"""The branch of a data set on the hub with its automatic conversion to parquet."""
CHUNK_BYTES = 1 << 20
"""Characters of a JSON list that are read at a time."""
SPACES = re.compile(r"[ \t\r\n]*")
TRAIN = re.compile(r"(^|[/._-])train(20\d\d)?([/._-]|$)")
"""A name with "train" in it, such as train2017."""
ENDINGS = (".jsonl", ".parquet", ".json")
"""Endings of the files of a folder that are read. Its .json files are read where it has no others: they often describe
these."""
LocatedRow = tuple[str, Any]
"""A row's location for messages, and the row, its JSON, or the ValueError of one that can't be parsed."""


def find(source: str) -> list[str]:
    """Return the files of a source: a .jsonl, .json or .parquet file, a folder of them, or on the hub
    `hf://datasets/owner/name` (short: `hf:owner/name`) or parquet files inside it (with `*`). If some paths contain
    "train", only those are returned. A data set without parquet files is read from the hub's conversion. Raises
    ValueError without files."""
    if source.startswith("hf:"):
        return _find_on_hub(source)
    path = Path(source).expanduser()
    inputs.note_listing(path, ENDINGS)
    if path.is_file() and path.suffix in ENDINGS:
        return [str(path)]
    jsonl, parquet, lists = (_visible(path, suffix) for suffix in ENDINGS)
    files = [str(file) for file in [*jsonl, *parquet] or lists]
    if not files:
        raise ValueError(
            f"{source}: expected a .jsonl, .json or .parquet file, a folder of them, or hf://datasets/owner/name, "
            "found "
            f"{'none in that folder' if path.is_dir() else 'another file' if path.is_file() else 'nothing there'}"
        )
    return _train_split(files, str(path))


def _find_on_hub(source: str) -> list[str]:
    path = "datasets/" + source.removeprefix(HUB).removeprefix("hf:").removeprefix("datasets/")
    try:
        if path.endswith(".parquet"):
            files = _hub().glob(path)
        else:
            files = _hub().glob(f"{path}/**/*.parquet") or _hub().glob(
                f"{path}{CONVERTED_BRANCH}/**/*.parquet"
            )
    except Exception as error:  # the hub client raises a family of network and HTTP errors
        raise ValueError(f"{source} could not be read from the hub: {error}") from error
    if not files:
        raise ValueError(f"{source}: expected parquet files in that data set, found none")
    return [HUB + file for file in _train_split(sorted(files), path)]


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _train_split(files: list[str], under: str) -> list[str]:
    return [file for file in files if TRAIN.search(file.removeprefix(under))] or files


def _open(file: str, encoding: str = "") -> Any:
    if file.startswith(HUB):
        return _hub().open(file.removeprefix(HUB))
    if file.endswith(".parquet") and not is_remote(file):
        return pa.OSFile(file)  # Arrow's own file for the reason in `Shards._open`
    return open_file(file, encoding=encoding)


def _visible(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix. Hidden folders aren't data: curation stores dropped rows there."""
    return [
        path
        for path in sorted(folder.rglob(f"*{suffix}"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def count(file: str, encoding: str = "") -> int:
    """Return the number of rows of a file."""
    if ending(file) == ".json":
        return sum(1 for _ in _list(file, encoding))
    with _open(file, encoding) as stream:
        if file.endswith(".parquet"):
            return int(pq.ParquetFile(stream).metadata.num_rows)
        return sum(bool(line.strip()) for line in stream)


def rows(file: str, encoding: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (location for error messages, a row or its JSON) of every row; "" as `encoding` is UTF-8. Raises ValueError
    for a .json file that holds no list."""
    if not is_remote(file):
        inputs.note(file)
    if ending(file) == ".json":
        items = enumerate(_list(file, encoding), 1)
        yield from ((f"{file}, row {number}", row) for number, row in items)
        return
    if file.endswith(".parquet"):
        of_file = enumerate(parquet(file), 1)
        yield from ((f"{file}, row {number}", row) for number, row in of_file)
        return
    with _open(file, encoding) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield f"{file}, line {number}", line


def parquet(file: str) -> Iterator[Any]:
    """Yield the rows of a parquet file; one that is too large is the ValueError that says so."""
    if not is_remote(file):
        yield from parquet_rows(file)
        return
    with _open(file) as stream:
        yield from parquet_rows(file, stream)


def _list(file: str, encoding: str = "") -> Iterator[Any]:
    """Yield the items of a JSON list, of which a part is in memory."""
    with _open(file, encoding) as stream:
        text = _JsonText(file, stream)
        if (start := text.peek()) != "[":
            content = "dict" if start == "{" else repr(start)
            raise ValueError(f"{file}: expected a list of rows, found {content}")
        yield from text.items()
        if rest := text.peek():
            raise ValueError(f"{file}: expected JSON, found {rest!r} after the list")


def lists(file: str, encoding: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, item) of each list in a JSON object, of which a part is in memory."""
    if not is_remote(file):
        inputs.note(file)
    with _open(file, encoding) as stream:
        text = _JsonText(file, stream)
        text.expect("{")
        while text.peek() == '"':
            key = text.value()
            text.expect(":")
            if text.peek() == "[":
                yield from ((key, item) for item in text.items())
            else:
                text.value()
            if text.peek() == ",":
                text.expect(",")
        text.expect("}")


class _JsonText:
    """The JSON text of a file, of which the part with the next value is in memory."""

    def __init__(self, file: str, stream: Any) -> None:
        self._file, self._chunks = file, codecs.getreader("utf-8")(stream)
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._values = (
            self._chunks.read(CHUNK_BYTES).removeprefix("\ufeff"),
            0,
            0,
        )

    def peek(self) -> str:
        """The next character that isn't white space; "" at the end."""
        while True:
            self._at = skip(self._text, self._at)
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def expect(self, mark: str) -> None:
        """Skip the next character, which must be `mark`. Raises ValueError for another one."""
        if (character := self.peek()) != mark:
            raise ValueError(f"{self._file}: expected JSON with {mark!r}, found {character!r}")
        self._at += 1

    def items(self) -> Iterator[Any]:
        """Yield the values of the list that begins here, and go on after it."""
        self.expect("[")
        more = self.peek() != "]"
        while more:
            yield self.value()
            if more := self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def value(self) -> Any:
        """Return the next JSON value of the list or object."""
        self.peek()
        self._values += 1
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end == len(self._text):
                    raise ValueError("the file ends within a list or object")  # or a number goes on
            except (ValueError, RecursionError) as error:
                if not self._read_more():
                    raise ValueError(f"{self._file}: expected JSON, {error}") from None
                continue
            self._at = end
            return value

    def _read_more(self) -> bool:
        """Read as much again, and return whether there was more. Raises ValueError for too long a value."""
        more = self._chunks.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        try:
            check_values(self._text)
        except ValueError as error:
            raise ValueError(f"{self._file}, row {self._values}: {error}") from None
        if len(self._text) > 2 * MAX_TEXT:
            raise ValueError(
                f"{self._file}, row {self._values}: expected at most {MAX_TEXT:,} characters of JSON, found more"
            )
        return bool(more)


def skip(text: str, at: int) -> int:
    """The position of the next character that isn't white space."""
    match = SPACES.match(text, at)
    assert match is not None
    return match.end()
