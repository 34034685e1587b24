"""The limits of JSON bodies, counted block by block while a body arrives. A parser would hold Python's lock for seconds
on millions of small values, and so stop the whole server.

>>> scanner = Scanner()
>>> pieces = [piece for block in blocks for piece in scanner.scan(block)]     # raises ApiError 413 at once

Long strings without escapes, as base64 media are, become separate pieces, which json_parser.py doesn't parse.
"""

from dataclasses import dataclass

from polyphi.serve.http.errors import ApiError

MAX_VALUES, MAX_OBJECTS, MAX_LISTS, MAX_NAMES = 1_100_000, 20_000, 20_000, 100_000
"""Maximum numbers of a body's values (numbers, strings and so on), objects, lists, and names in objects. Parsing that
many takes 0.1 s."""
MAX_OUTSIDE = 12 << 20
"""Bytes outside of strings: numbers, brackets and blanks."""
MAX_TEXT = 24 << 20
"""Bytes to parse, which are all but the separate pieces: four million characters of any script."""
LONG = 4096
"""Bytes from which a part of a string can become a separate piece."""
PRINTABLE = bytes(range(0x20, 0x7F))


@dataclass(frozen=True)
class BodyPiece:
    """Consecutive bytes of a body. `plain`: a part of a JSON string without escapes other than `\\/`."""

    data: bytes
    plain: bool = False


class Scanner:
    """Counts what a JSON text contains outside of its strings. Invalid JSON is left to the parser."""

    def __init__(self) -> None:
        self._in_string = False
        self._backslash = b""
        """A backslash whose character comes with the next block."""
        self._values = self._objects = self._lists = self._names = self._outside = self._text = 0

    def scan(self, block: bytes, *, last: bool = False) -> list[BodyPiece]:
        """The next bytes of the text in pieces. Raises ApiError 413 above a limit."""
        block = masked = self._backslash + block
        self._backslash = b""
        if b"\\" in block:  # equally long, so that a quotation mark begins or ends a string
            masked = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            if masked.endswith(b"\\") and not last:
                block, masked, self._backslash = block[:-1], masked[:-1], b"\\"
        parts = masked.split(b'"')
        first = 0 if self._in_string else 1  # of the parts that are in strings
        self._count(b"".join(parts[1 - first :: 2]))
        pieces = [BodyPiece(block)] if block else []
        if max(map(len, parts[first::2]), default=0) >= LONG:
            pieces = self._cut(block, parts, first)
        self._text += sum(len(piece.data) for piece in pieces if not piece.plain)
        _check(self._text, MAX_TEXT, "bytes in addition to images and audio")
        self._in_string ^= len(parts) % 2 == 0
        return pieces

    def _count(self, outside: bytes) -> None:
        objects, lists = outside.count(b"{"), outside.count(b"[")
        self._objects += objects
        self._lists += lists
        self._names += outside.count(b":")
        self._values += objects + lists + outside.count(b",")
        self._outside += len(outside)
        _check(self._objects, MAX_OBJECTS, "objects")
        _check(self._lists, MAX_LISTS, "lists")
        _check(self._names, MAX_NAMES, "names in objects")
        _check(self._values, MAX_VALUES, "values")
        _check(self._outside, MAX_OUTSIDE, "bytes outside of strings")

    def _cut(self, block: bytes, parts: list[bytes], first: int) -> list[BodyPiece]:
        """The block with the long plain parts of its strings as separate pieces."""
        pieces: list[BodyPiece] = []
        start = at = 0
        for number, part in enumerate(parts):
            end = at + len(part)
            if number % 2 == first and len(part) >= LONG:
                data = block[at:end]
                if _is_plain(data):
                    pieces += [BodyPiece(block[start:at])] if at > start else []
                    pieces.append(BodyPiece(data, plain=True))
                    start = end
            at = end + 1
        return [*pieces, BodyPiece(block[start:])] if start < len(block) else pieces


def _is_plain(data: bytes) -> bool:
    """Whether a part of a string has only printable ASCII, and no escapes but `\\/`, which some libraries write."""
    return data.count(b"\\") == data.count(b"\\/") and not data.translate(None, PRINTABLE)


def _check(count: int, most: int, what: str) -> None:
    if count > most:
        raise ApiError(413, f"a JSON body has at most {most:,} {what}, found more")
