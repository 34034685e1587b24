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
from polyphi.data.limits import MAX_TEXT, check_values, parse_json
from polyphi.runtime import inputs

HUB = "hf://"
CONVERTED_BRANCH = "@refs%2Fconvert%2Fparquet"
"""The branch of a data set on the hub with its automatic conversion to parquet."""
CHUNK = 1 << 20
"""Characters of a JSON list that are read at a time."""
SPACES = re.compile(r"[ \t\r\n]*")
TRAIN = re.compile(r"(^|[/._-])train([/._-]|$)")
"""A name with "train" in it."""
ENDINGS = (".jsonl", ".parquet", ".json")
"""A folder's .json files are read where it has no others: they often describe these."""


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
    decoder = json.JSONDecoder()
    with _open(file, encoding) as stream:
        chunks = codecs.getreader("utf-8")(stream)
        text, at, first, row = "", 1, True, 1
        while not text and (more := chunks.read(CHUNK)):
            text = more.lstrip("\ufeff \t\r\n")
        if not text.startswith("["):
            try:
                content_type = type(parse_json(text + chunks.read())).__name__
            except ValueError as error:
                raise ValueError(f"{file}: expected JSON, {error}") from None
            raise ValueError(f"{file}: expected a list of rows, found {content_type}")
        while True:
            start = at
            try:
                at = skip(text, at)
                if text[at : at + 1] == "]":
                    break
                if not first:
                    at = skip(text, _expect(text, at, ","))
                item, end = decoder.raw_decode(text, at)
                if end == len(text):
                    raise ValueError("the file ends within the list")  # or a number continues
            except (ValueError, RecursionError) as error:
                if len(text) - start > MAX_TEXT:
                    raise ValueError(
                        f"{file}, row {row}: expected at most {MAX_TEXT:,} characters of JSON, found more ({error})"
                    ) from None
                if not (more := chunks.read(max(CHUNK, len(text) - start))):
                    raise ValueError(f"{file}: expected JSON, {error}") from None
                text, at = text[start:] + more, 0
                try:
                    check_values(text)
                except ValueError as many:
                    raise ValueError(f"{file}, row {row}: {many}") from None
                continue
            yield item
            at, first, row = end, False, row + 1
        if rest := (text[at + 1 :] + chunks.read()).strip():
            raise ValueError(f"{file}: expected JSON, found {rest[:20]!r} after the list")


def skip(text: str, at: int) -> int:
    """The position of the next character that isn't white space."""
    match = SPACES.match(text, at)
    assert match is not None
    return match.end()


def _expect(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise ValueError(f"expected {mark!r}, found {text[at : at + 10]!r}")
    return at + 1
