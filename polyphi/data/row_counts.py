"""About how many rows a file has, without reading all of it.

    shards, parquet, folders of images           counted
    JSON lists in another encoding than UTF-8    counted
    text, Arrow and tars, up to the budget       counted
    larger ones                                  rows per byte in pieces that lie apart
    larger compressed ones, and Arrow            rows per stored byte in the first part

>>> sum(estimated_rows(file) for file in find("captions.jsonl"))
"""

import itertools
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polyphi.data import arrow_files, coco, documents, row_files, webdataset
from polyphi.data.addresses import PACKED, ending, file_system, is_remote, open_file, unpacked
from polyphi.data.sources import ERRORS, SourceFile, delimiter_of, rows, shard_files

BUDGET = 8 << 20
"""Bytes of a file that are read."""
REMOTE_BUDGET = 256 << 10
PIECES, MIN_PIECE = 32, 64 << 10
"""Maximum number of pieces of a file, and minimum bytes of one."""
HEAD, MAX_MARK = 1 << 20, 4096
"""Bytes of a file that are in memory at a time, and characters between two items of a JSON list."""
UNPACKED = 4
"""Unpacked bytes of a compressed file that are read, for a byte of the budget."""
MEMBER, MIN_MEMBERS = 2048, 32
"""Bytes of the budget for a member of a tar, of which the header is read, and fewest members of a piece."""
SCAN = 1 << 20
"""Bytes in which the next header of a tar is searched for."""
TRIED = 16
"""Documents of an archive that are read."""
TABLES = (".csv", ".tsv")
"""Endings of files with a line of names, but those of fleurs."""

Count = Callable[[bytes, bool], float]
"""Rows that end in a piece of a file, and whether the piece is at the file's end."""


def estimated_rows(file: SourceFile, budget: int = BUDGET) -> int:
    """About how many rows a file has, by about `budget` bytes of it (of a file elsewhere, fewer). Raises ValueError for
    a damaged file where the damage is met."""
    budget = min(budget, REMOTE_BUDGET) if is_remote(file.path) else budget
    try:
        return _estimated_rows(file, budget)
    except ERRORS as error:
        raise ValueError(f"{file}: {error or type(error).__name__}") from None


def _estimated_rows(file: SourceFile, budget: int) -> int:
    if file.format == "shards":
        return sum(count for _, count in shard_files(file.path))
    if file.path.endswith(".parquet"):
        return row_files.count(file.path)
    if file.format == "datasets":
        return _arrow(file.path, budget)
    if file.format == "webdataset":
        return _tar(file.path, budget)
    if file.format == "warc":
        return _archive(file)
    if file.format in documents.READERS:
        return 1
    if file.format in ("classes", *coco.FORMATS) or (
        not is_remote(file.path) and Path(file.path).is_dir()
    ):
        return sum(1 for _ in rows(file))
    return _text(file, budget)


# ------------------------------------------------------------------------------ text


def _text(file: SourceFile, budget: int) -> int:
    """The rows of a file of lines, of records of a .csv, or of a JSON list."""
    is_list = file.format in ("rows", "imagefolder") and ending(file.path) == ".json"
    is_packed, size = file.path.endswith(PACKED), _size(file.path)
    if is_list and (file.encoding or (not is_packed and size <= budget)):
        return row_files.count(file.path, file.encoding)
    with _unpacked(file.path) as (stream, position):
        piece = _read(stream, HEAD)
        count = _list_counter(piece) if is_list else _counter(file, piece)
        if count is None:
            return sum(1 for _ in itertools.islice(rows(file), 1))  # raises for another file
        if not is_packed and size > budget:
            length = max(MIN_PIECE, budget // PIECES)
            pieces = [
                _at(stream, start, length) for start in _starts(size, length, budget // length)
            ]
            total = sum(count(one, False) for one in pieces)
            return round(total * size / max(1, sum(map(len, pieces))))
        total, limit, at = 0.0, UNPACKED * budget, 0
        while piece and limit > 0:
            at, following = position(), _read(stream, HEAD)
            total += count(piece, not following)
            limit -= len(piece)
            piece = following
        if piece:
            return round(total * size / at)
        has_names = ending(file.path) in TABLES and file.format != "fleurs"
        return max(0, round(total) + is_list - has_names)


def _counter(file: SourceFile, head: bytes) -> Count:
    """The counter of lines, or of records of a .csv, whose quoted fields may have several lines."""
    if ending(file.path) == ".csv":
        names = next(_records(head, 0), b"")
        delimiter = delimiter_of(names.decode("utf-8", "replace"), ",").encode()
        count = names.count(delimiter)
        return lambda piece, ends: _csv_records(piece, delimiter, count, ends)
    return _lines


def _lines(piece: bytes, ends: bool) -> int:
    """Lines with content that end in a piece."""
    *lines, last = piece.split(b"\n")
    return sum(bool(line.strip()) for line in lines) + bool(ends and last.strip())


def _records(piece: bytes, inside: int) -> Iterator[bytes]:
    """Yield the unquoted text of each record of a piece of a .csv; `inside` is 1 if the piece begins inside quotes."""
    yield from b"".join(piece.split(b'"')[inside::2]).split(b"\n")


def _csv_records(piece: bytes, delimiter: bytes, count: int, ends: bool) -> int:
    """Number of records, of `count` delimiters each, that end in a piece. Whether it begins inside of quotes is what
    gives more records that number."""
    readings = [[*_records(piece, inside)] for inside in (0, 1)]
    regular = [sum(r.count(delimiter) == count for r in records) for records in readings]
    records = readings[regular[1] > regular[0]]
    return len(records) - 1 + bool(ends and piece.strip() and not piece.endswith(b"\n"))


def _list_counter(head: bytes) -> Count | None:
    """The counter of the items of a JSON list: of what stands between the first two, up to the first key of the second,
    in proportion to the items of the head. Items that aren't objects, or of which the head has one, are as long as
    these. None for a head without an item."""
    text, decoder = head.decode("utf-8-sig", "ignore"), json.JSONDecoder()
    ends: list[int] = []
    at = row_files.skip(text, 0) + 1
    with suppress(ValueError, IndexError, RecursionError):  # at the end of the head
        while text[at - 1] == ("," if ends else "["):
            _, at = decoder.raw_decode(text, row_files.skip(text, at))
            ends.append(at)
            at = row_files.skip(text, at) + 1
    if not ends:
        return None
    mark = re.match(r'\s*,\s*\{\s*"(?:[^"\\]|\\.)*"', text[ends[0] : ends[0] + MAX_MARK])
    if mark is None or len(ends) == 1:
        return lambda piece, _: len(piece) * len(ends) / ends[-1]
    pattern = mark[0].encode()
    ratio = (len(ends) - 1) / text[: ends[-1]].encode().count(pattern)
    return lambda piece, _: piece.count(pattern) * ratio


# ------------------------------------------------------------------------------ Arrow, tars, archives


def _arrow(path: str, budget: int) -> int:
    """The rows of an Arrow stream; of a large one those of the first batches, in proportion."""
    count = 0
    with open_file(path) as stream:
        for batch in arrow_files.batches(stream):
            count += batch.num_rows
            if stream.tell() >= budget:
                return round(count * _size(path) / stream.tell())
    return count


def _tar(path: str, budget: int) -> int:
    """The rows of a tar: members of one name in a row. Of a large one those that begin in equally long pieces, each of
    about as many members as its first part has in that length."""
    most = budget // MEMBER
    with _unpacked(path) as (stream, position):
        size = _size(path)
        if path.endswith(PACKED):
            ahead, limit = _Ahead(stream), UNPACKED * budget
            starts, end = _row_starts(ahead, 0, until=limit)
            if end is None:
                return len(starts)
            ahead.seek(min(end, limit))  # the last member may be longer than the others
            return round(len(starts) * min(1, limit / end) * size / position())
        starts, end = _row_starts(stream, 0, most)
        if end is None:
            return len(starts)
        each = max(MIN_MEMBERS, most // PIECES)
        piece, share = round(end * each / most), len(starts) / most
        count = length = 0.0
        for start in _starts(size, piece, most // each):
            end = None
            if (first := _next_header(stream, start)) is not None:
                starts, end = _row_starts(stream, first, 4 * each, start + piece)
                # The first member begins a row as often as others do.
                count += len(starts) - 1 + share if starts else 0.0
            length += piece if end is None else min(piece, end - start)
        return round(count * size / length)


class _Ahead:
    """A compressed file that is read up to an offset, which isn't before the last one."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._at = stream, 0

    def seek(self, offset: int) -> None:
        """Read up to an offset, or to the end."""
        while self._at < offset and self.read(min(HEAD, offset - self._at)):
            pass

    def read(self, size: int) -> bytes:
        """Return the next bytes of the unpacked file."""
        data = _read(self._stream, size)
        self._at += len(data)
        return data


def _row_starts(
    stream: Any, offset: int, most: float = math.inf, until: float = math.inf
) -> tuple[list[int], int | None]:
    """The offsets below `until` at which rows begin among the next `most` members, and the offset after them; None at
    the end of the tar."""
    starts: list[int] = []
    key = long_name = ""
    members = 0
    while members < most and offset < until:
        members += 1
        stream.seek(offset)
        try:
            member = tarfile.TarInfo.frombuf(
                stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape"
            )
        except tarfile.HeaderError:  # also of the zeros at the end
            return starts, None
        if member.size < 0:
            raise tarfile.ReadError(f"expected the size of {member.name}, found {member.size}")
        data = offset + tarfile.BLOCKSIZE
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            long_name = _long_name(member.type, stream.read(min(member.size, MIN_PIECE)))
        elif member.isfile():
            at = webdataset.row_key(long_name or member.name)
            if at is not None and at != key:
                starts.append(offset)
                key = at
            long_name = ""
        offset = data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return starts, offset


def _long_name(type_: bytes, content: bytes) -> str:
    """The name of the next member in the content of one that precedes it, for names that don't fit a header."""
    if type_ == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    match = re.search(rb"\d+ path=([^\n]*)\n", content)
    return match[1].decode("utf-8", "surrogateescape") if match else ""


def _next_header(stream: Any, offset: int) -> int | None:
    """The offset of the first header of a tar from `offset` on; None where there is none in the next `SCAN` bytes."""
    offset -= offset % tarfile.BLOCKSIZE
    blocks = _at(stream, offset, SCAN)
    for at in range(0, len(blocks) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        block = blocks[at : at + tarfile.BLOCKSIZE]
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                continue
            return offset + at
    return None


def _archive(file: SourceFile) -> int:
    """The documents of an archive of web pages, which are as long as the first ones."""
    with _unpacked(file.path) as (stream, position):
        count = sum(1 for _ in itertools.islice(documents.READERS[file.format](stream), TRIED))
        return count if count < TRIED else round(count * _size(file.path) / position())


# ------------------------------------------------------------------------------ pieces of files


@contextmanager
def _unpacked(path: str) -> Iterator[tuple[Any, Callable[[], int]]]:
    """(a file, unpacked if it is compressed; a function that returns how many of its stored bytes have been read)."""
    with open_file(path, unpack=False) as stored:
        yield unpacked(stored, path), stored.tell


def _read(stream: Any, size: int) -> bytes:
    """The next `size` bytes, or fewer at the end."""
    return bytes(stream.read(size))


def _at(stream: Any, start: int, size: int) -> bytes:
    stream.seek(start)
    return _read(stream, size)


def _starts(size: int, piece: int, count: int) -> list[int]:
    """The beginnings of pieces in the middles of `count` equal parts of a file."""
    return [max(0, round((n + 0.5) * size / count - piece / 2)) for n in range(count)]


def _size(path: str) -> int:
    if not is_remote(path):
        return Path(path).stat().st_size
    system, name = file_system(path)
    return int(system.size(name) or 0)
