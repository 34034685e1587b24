"""Rows of parquet files and Arrow streams, within limits: a few bytes of either may stand for gigabytes.

Pages of a parquet file are checked by their headers before Arrow unpacks them, messages of an Arrow stream by theirs
before they are read, and rows of both by their size in Arrow before they are made in Python.
"""

import io
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyphi.data.limits import MAX_ROW

ArrowRow = dict[str, Any] | ValueError
ROWS_PER_BATCH = 16
"""Rows in memory at a time; each may hold megabytes of media."""
BATCH_BYTES = 64 << 20
"""[ours] Bytes of a batch whose rows are in memory at a time, where a row isn't larger."""
RATIO = 16
"""[ours] How much larger than its part of the file the pages of a row group may be that are in memory at a time."""
MAX_VALUES = 1 << 26
"""[ours] Values of a column of lists in a row group."""
VALUE_BYTES = 64
"""About the bytes of a value in Python beside its text, with its place in a list."""
PADDING = 100
"""Bytes of a column chunk that its size leaves out in files of old writers (PARQUET-816)."""
DICTIONARY_PAGE = 2
MAX_DEPTH = 8
"""Structures inside one another in the header of a page."""
MAX_METADATA, MAX_MESSAGE = 16 << 20, 1 << 30
"""[ours] Bytes of the metadata and of the columns of a message of an Arrow stream."""
DICTIONARY_BATCH, RECORD_BATCH = 2, 3
"""Types of an Arrow stream's messages."""
PIECE = 1 << 20
"""Bytes of a message that are read at once."""


# ------------------------------------------------------------------------------ parquet


def parquet_rows(path: str, stream: Any = None) -> Iterator[ArrowRow]:
    """The rows of a local parquet file, or of one elsewhere that is open as `stream`; one that is too large is the
    ValueError that says so. Raises ValueError for pages that are too large."""
    try:
        if stream is not None:
            ranges = _Ranges(stream)
            yield from _parquet_rows(ranges, ranges)
            return
        # Arrow's own file for the reason in `Shards._open`.
        with pa.OSFile(path) as arrow_file, open(path, "rb") as file:
            yield from _parquet_rows(arrow_file, _Local(file))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parquet_rows(source: Any, ranges: "_Ranges | _Local") -> Iterator[ArrowRow]:
    parquet = pq.ParquetFile(source)
    metadata, schema = parquet.metadata, parquet.schema
    leaves = [schema.column(c) for c in range(metadata.num_columns)]
    in_lists = [leaf.max_repetition_level > 0 for leaf in leaves]
    # One copy of a text that a list repeats, so that its size is known before the copies are made.
    texts = [
        leaf.path
        for leaf, in_list in zip(leaves, in_lists, strict=True)
        if in_list and leaf.physical_type == "BYTE_ARRAY"
    ]
    parquet = pq.ParquetFile(source, metadata=metadata, read_dictionary=texts)
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(c) for c in range(metadata.num_columns)]
        try:
            size = _pages(columns, in_lists, ranges)
        except ValueError as error:
            raise ValueError(f"row group {index}: {error}") from None
        count = min(ROWS_PER_BATCH, max(1, BATCH_BYTES // max(1, size)))
        for batch in parquet.iter_batches(count, row_groups=[index]):
            yield from _rows(batch)


def _pages(columns: Sequence[Any], in_lists: Sequence[bool], ranges: "_Ranges | _Local") -> int:
    """Bytes of the unpacked pages of a row group that are in memory at a time. Raises ValueError if they are many for
    the size of the file, or a list may have many values."""
    ranges.clear()
    total = packed = 0
    for column, in_list in zip(columns, in_lists, strict=True):
        start, length = column.data_page_offset, column.total_compressed_size
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        chunk = ranges.read_range(start, length + PADDING)
        dictionary = largest = values = at = 0
        while values < column.num_values and at < len(chunk):
            header, at = _header(chunk, at)
            size, size_in_file = header.get(2, 0), header.get(3, -1)
            if size < 0 or size_in_file < 0:
                raise ValueError("expected a page with its size, found none")
            at += size_in_file
            if header.get(1) == DICTIONARY_PAGE:
                dictionary = max(dictionary, size)
            else:
                largest = max(largest, size)
                of_page = header.get(5) or header.get(8) or {}
                values += of_page.get(1, 0)
        if in_list and values > MAX_VALUES:
            raise ValueError(
                f"expected at most {MAX_VALUES:,} values in the lists of {column.path_in_schema}, found {values:,}"
            )
        if in_list and "DELTA_BYTE_ARRAY" in column.encodings:
            raise ValueError(
                f"expected texts in the lists of {column.path_in_schema} that are stored whole or in a dictionary, "
                "found DELTA_BYTE_ARRAY; write the file again"
            )
        total += dictionary + largest
        packed += length
    if total > max(MAX_ROW, RATIO * packed):
        raise ValueError(
            f"expected pages of at most {max(MAX_ROW, RATIO * packed):,} bytes, found {total:,}; write the file again "
            "with smaller pages or row groups"
        )
    return total


Header = dict[int, Any]
"""Field -> an integer, or a header within the header."""


def _header(data: Any, at: int, depth: int = 0) -> tuple[Header, int]:
    """A structure in Thrift's compact protocol, which a page begins with, and where it ends. Raises ValueError."""
    fields: Header = {}
    number = 0
    try:
        while (head := data[at]) != 0:
            at += 1
            if head >> 4:
                number += head >> 4
            else:
                number, at = _integer(data, at)
            match head & 15:
                case 1 | 2:  # true, false
                    pass
                case 3:
                    at += 1
                case 4 | 5 | 6:
                    fields[number], at = _integer(data, at)
                case 7:
                    at += 8
                case 8:
                    length, at = _varint(data, at)
                    at += length
                case 12 if depth < MAX_DEPTH:
                    fields[number], at = _header(data, at, depth + 1)
                case _:
                    raise ValueError("expected the header of a page, found something else")
    except IndexError:
        raise ValueError("expected the header of a page, found the end of its column") from None
    return fields, at + 1


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def _integer(data: Any, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


class _Local:
    """The parts of a local file."""

    def __init__(self, file: Any) -> None:
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read_range(self, start: int, length: int) -> memoryview:
        return memoryview(self._map)[max(0, start) : max(0, start + length)]

    def clear(self) -> None:
        """Do nothing: the file has no cached parts."""


class _Ranges(io.RawIOBase):
    """A file elsewhere, whose parts are fetched once: to check them, and for Arrow."""

    def __init__(self, file: Any) -> None:
        self._file, self._at = file, 0
        self._parts: dict[int, bytes] = {}

    def read_range(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        self._parts[start] = self._file.read(length)
        return self._parts[start]

    def clear(self) -> None:
        """Drop the cached parts of the file."""
        self._parts.clear()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = self._file.seek(offset, whence)
        return self._at

    def read(self, size: int = -1) -> bytes:
        part = self._parts.get(self._at, b"")
        if 0 <= size <= len(part):
            data = part[:size]
        else:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data


# ------------------------------------------------------------------------------ Arrow streams


def stream_rows(stream: Any, path: str) -> Iterator[ArrowRow]:
    """The rows of an Arrow stream, as `datasets.save_to_disk` writes it; one that is too large is the ValueError that
    says so. Raises ValueError for messages that are too large, and pa.ArrowException for a damaged file."""
    try:
        for batch in batches(stream):
            batch.validate(full=True)  # sizes and offsets are those of the file
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield from _rows(batch.slice(start, ROWS_PER_BATCH))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def batches(stream: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream within limits."""
    yield from pa.ipc.open_stream(_Messages(stream))


class _Messages(io.RawIOBase):
    """An Arrow stream, of which the size of each message is checked before it is read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._head = io.BytesIO()
        self._body = 0  # bytes of the message that follow its head

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the Arrow stream."""
        data = bytearray()
        while size < 0 or len(data) < size:
            missing = PIECE if size < 0 else min(PIECE, size - len(data))
            if not (piece := self._head.read(missing)):
                if self._body == 0 and not self._next():
                    break
                if not (piece := self._head.read(missing)):
                    piece = self._stream.read(min(missing, self._body))
                    self._body -= len(piece)
                    if not piece:
                        break
            data += piece
        return bytes(data)

    def _next(self) -> bool:
        """Read the head of the next message, if there is one."""
        head = self._stream.read(4)
        length = head
        if head == b"\xff" * 4:
            length = self._stream.read(4)
            head += length
        if len(length) < 4 or length == b"\0" * 4:
            self._head = io.BytesIO(head)
            return bool(head)
        (count,) = struct.unpack("<i", length)
        if not 0 < count <= MAX_METADATA:
            raise ValueError(
                f"expected at most {MAX_METADATA:,} bytes of metadata of an Arrow stream, found {count:,}"
            )
        metadata = self._stream.read(count)
        self._head, self._body = io.BytesIO(head + metadata), _body_length(metadata)
        return True


def _body_length(metadata: bytes) -> int:
    """Bytes of the columns of a message. Raises ValueError for many, and for packed ones, whose size isn't known."""
    try:
        (message,) = struct.unpack_from("<I", metadata)
        length = _field(metadata, message, 3, "<q") or 0
        type_, batch = _field(metadata, message, 1, "<B"), _table(metadata, message, 2)
        if type_ == DICTIONARY_BATCH and batch is not None:
            batch = _table(metadata, batch, 1)
        of_batch = batch if type_ in (DICTIONARY_BATCH, RECORD_BATCH) else None
        packed = of_batch is not None and _table(metadata, of_batch, 3) is not None
    except struct.error:
        raise ValueError("expected the metadata of an Arrow stream, found something else") from None
    if packed:
        raise ValueError(
            "expected an Arrow stream without compression, as datasets.save_to_disk writes it, found a packed one"
        )
    if not 0 <= length <= MAX_MESSAGE:
        raise ValueError(f"expected at most {MAX_MESSAGE:,} bytes in a batch, found {length:,}")
    return int(length)


def _offset(data: bytes, table: int, field: int) -> int | None:
    """The offset in `data` of a field of a FlatBuffers table; None where the table lacks the field."""
    (distance,) = struct.unpack_from("<i", data, table)
    vtable, slot = table - distance, 4 + 2 * field
    if vtable < 0:
        raise struct.error
    (size,) = struct.unpack_from("<H", data, vtable)
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + slot)
    return table + int(offset) if offset else None


def _field(data: bytes, table: int, field: int, form: str) -> int | None:
    offset = _offset(data, table, field)
    return None if offset is None else int(struct.unpack_from(form, data, offset)[0])


def _table(data: bytes, table: int, field: int) -> int | None:
    offset = _offset(data, table, field)
    return None if offset is None else offset + int(struct.unpack_from("<I", data, offset)[0])


# ------------------------------------------------------------------------------ rows


def _rows(batch: pa.RecordBatch) -> Iterator[ArrowRow]:
    """The rows of a batch, one by one if they are large."""
    if _size(batch) <= BATCH_BYTES:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if (size := _size(row)) > MAX_ROW:
            yield ValueError(f"expected at most {MAX_ROW:,} bytes in a row, found {size:,}")
        else:
            yield from row.to_pylist()


def _size(batch: pa.RecordBatch) -> int:
    """About the bytes of rows in Python."""
    return sum(map(_array_size, batch.columns))


def _array_size(array: Any) -> int:
    types, kind = pa.types, array.type
    size = VALUE_BYTES * len(array)
    if isinstance(kind, pa.BaseExtensionType):
        return _array_size(array.storage)
    if types.is_dictionary(kind):
        return size + _repeated_size(array)
    if types.is_map(kind) or types.is_nested(kind):
        if types.is_struct(kind):
            return size + sum(map(_array_size, array.flatten()))
        if not types.is_union(kind):
            return size + _array_size(array.flatten())
    if types.is_fixed_size_binary(kind):
        return size + len(array) * int(kind.byte_width)
    if _is_text(kind):
        return size + int(pc.sum(pc.binary_length(array)).as_py() or 0)
    if types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind):
        return size
    raise ValueError(f"expected columns of texts, numbers, lists and structures, found {kind}")


def _repeated_size(array: Any) -> int:
    """The bytes of the values of a dictionary, each as often as it occurs."""
    values = array.dictionary
    if not _is_text(values.type):
        return len(array) * _array_size(values)
    lengths = pc.binary_length(values).take(array.indices)
    return int(pc.sum(lengths).as_py() or 0)


def _is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_string_view(kind)
    )
