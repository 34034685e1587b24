"""Limits of what is read of others' files: a few packed bytes may stand for gigabytes."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

MAX_ROW = 256 << 20
"""[ours] Bytes of a row with its media, and of a file that is read whole."""
MAX_TEXT = 128 << 20
"""[ours] Bytes of a line, a row of CSV or a JSON value: half an hour of audio takes 80 MB in base64."""
MAX_VALUES = 4 << 20
"""[ours] Values of a JSON text, each of which takes about 64 bytes in memory."""
MAX_CHARACTERS = 20 << 20
"""[ours] Characters of text in a row; those of the longest context are half a million."""
BUFFER = 1 << 16
"""Bytes that are read at once."""

csv.field_size_limit(MAX_TEXT)


class BoundedReader(io.BufferedReader):
    """A reader of an untrusted file that limits a line, and what is read without a size: a few packed bytes may stand
    for gigabytes. Raises ValueError above the limit."""

    def __init__(self, stream: Any, path: str) -> None:
        super().__init__(stream, BUFFER)
        self._path, self._line = path, 0

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes of the file, without `size` all that are left."""
        if size is not None and size >= 0:
            return super().read(size)
        data = super().read(MAX_ROW + 1)
        if len(data) > MAX_ROW:
            raise ValueError(f"{self._path}: expected at most {MAX_ROW:,} bytes, found more")
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Return the next line of the file."""
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MAX_TEXT + 1)
        self._line += 1
        if len(line) > MAX_TEXT:
            raise ValueError(
                f"{self._path}, line {self._line}: expected at most {MAX_TEXT:,} bytes, found more"
            )
        return line


class RowLines:
    """The lines of a text for csv.reader, whose rows may go over several. Raises ValueError for a longer row than
    `MAX_TEXT`; `row_ends` is called after each one. `before` lines of the file have been read."""

    def __init__(self, stream: io.TextIOBase, path: str, before: int = 0) -> None:
        self._stream, self._path = stream, path
        self._used, self._columns, self._line = 0, 0, before

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_TEXT - self._used + 1)
        self._used, self._line = self._used + len(line), self._line + 1
        self._columns += sum(map(line.count, ",;|\t"))
        if self._used > MAX_TEXT or self._columns > MAX_VALUES:
            raise ValueError(
                f"{self._path}, line {self._line}: expected at most {MAX_TEXT:,} characters and {MAX_VALUES:,} columns "
                "in a row, found more; is a quotation mark missing?"
            )
        if not line:
            raise StopIteration
        return line

    def row_ends(self) -> None:
        """Reset the counts of characters and columns for the next row."""
        self._used = self._columns = 0


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, nests too deeply, or has too many values."""
    check_values(text)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(
            "expected JSON, found too many lists or objects inside one another"
        ) from None


def check_values(text: bytes | str) -> None:
    """Raise ValueError for a JSON text that may have too many values."""
    if len(text) <= MAX_VALUES:
        return
    count = (
        sum(map(text.count, ",[{"))
        if isinstance(text, str)
        else sum(map(text.count, (b",", b"[", b"{")))
    )
    if count > MAX_VALUES:
        raise ValueError(f"expected at most {MAX_VALUES:,} values in a row, found more")


def encoding_error(error: UnicodeError) -> str:
    """The message for a text that isn't in its encoding, with what to do."""
    reason = str(error)  # of UTF-16 without its mark
    if isinstance(error, UnicodeDecodeError):
        reason = f"expected {error.encoding}, found the byte 0x{error.object[error.start]:02x}"
    return (
        f"{reason}; --encoding NAME (encoding in a recipe file) reads another one, such as cp1252"
    )
