"""Files anywhere: local paths, and addresses that fsspec reads (s3://, https://, gs://, hf://, ...)."""

import codecs
import gzip
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyphi.data.http_responses import response_class
from polyphi.data.limits import BUFFER, MAX_ROW, BoundedReader

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
PACKED = (".gz", ".tgz", ".zst")
"""Endings of compressed files."""
PROTOCOLS = (
    *("s3", "s3a", "gs", "gcs", "hf", "https", "http", "az", "abfs", "abfss", "adl", "oci", "oss"),
    *("hdfs", "webhdfs", "sftp", "ftp", "smb", "memory"),
)
"""[ours] Protocols of fsspec that lead to other machines. Other protocols of fsspec read files of this one, or chain
protocols."""
MAX_PATHS, MAX_CHARACTERS, MAX_DIGITS = 1 << 20, 1 << 28, 100
"""[ours] Paths that a pattern may stand for, about the characters of all of them, and digits of its bounds."""


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, which may be an address."""
    return f"{folder.rstrip('/')}/{name}"


def ending(path: str) -> str:
    """The ending of a path, without that of its compression: .jsonl of a.jsonl.gz, .tar of a.tgz."""
    name = Path(path.lower())
    if name.suffix == ".tgz":
        return ".tar"
    return Path(name.stem).suffix if name.suffix in PACKED else name.suffix


def without_braces(pattern: str) -> list[str]:
    """The texts that a pattern with {000..122} stands for; itself without braces. Raises ValueError for too many."""
    before, *parts = BRACES.split(pattern)
    choices, count = [[before]], 1
    for first, last, after in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        is_short = len(first + last) < MAX_DIGITS
        count *= max(1, int(last) - int(first) + 1) if is_short else MAX_PATHS
        if count >= MAX_PATHS or count * len(pattern) >= MAX_CHARACTERS:
            raise ValueError(
                f"expected braces that stand for fewer than {MAX_PATHS:,} paths, found {pattern[:80]}"
            )
        numbers = range(int(first), int(last) + 1)
        choices += [[f"{n:0{len(first)}d}" for n in numbers], [after]]
    return list(map("".join, itertools.product(*choices)))


def exists(path: str) -> bool:
    """Whether a file exists at a path or an address."""
    if not is_remote(path):
        return Path(path).is_file()
    system, name = file_system(path)
    return bool(system.isfile(name))


def read_bytes(path: str, limit: int = MAX_ROW, redirects: bool = True) -> bytes:
    """The content of a file anywhere. Raises ValueError above `limit` bytes, and OSError for an address that redirects
    if `redirects` are refused."""
    with open_file(path, unpack=False, redirects=redirects) as stream:
        data: bytes = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: expected at most {limit:,} bytes, found more")
    return data


@contextmanager
def open_file(
    path: str, unpack: bool = True, encoding: str = "", redirects: bool = True
) -> Iterator[BoundedReader]:
    """A file anywhere, open for reading its bytes, which are unpacked if it is compressed. With `encoding` they are
    those of its text in UTF-8. Raises OSError, and where it is read UnicodeDecodeError."""
    if is_remote(path):
        system, name = file_system(path, redirects)
        try:
            stream: Any = system.open(name, "rb")
        except FileNotFoundError as error:  # fsspec's for all that goes wrong
            raise FileNotFoundError(f"{path}: {error.__cause__ or 'nothing there'}") from None
    else:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    with stream:
        content = unpacked(stream, path) if unpack else stream
        yield BoundedReader(_Recoded(content, encoding) if encoding else content, path)


def unpacked(stream: Any, path: str) -> Any:
    """The content of the open file `path`, which may be compressed; it is closed with its file."""
    if path.endswith(".zst"):
        return pa.CompressedInputStream(stream, "zstd")
    return gzip.open(stream) if path.endswith(PACKED) else stream


class _Recoded(io.RawIOBase):
    """The text of a file in UTF-8."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._data, self._ended = b"", False

    def readable(self) -> bool:
        """Return True: the file is open for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes, and return their number."""
        while not self._data and not self._ended:
            more = self._stream.read(BUFFER)
            self._ended = not more
            self._data = self._decoder.decode(more, self._ended).encode()
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size


def check_protocol(path: str) -> None:
    """Raise ValueError for an address that may lead to a file of this machine."""
    protocol = path.partition("://")[0]
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{path}: expected an address with {', '.join(PROTOCOLS)}, or a path without one, found {protocol}"
        )


def file_system(path: str, redirects: bool = True) -> tuple[Any, str]:
    """(fsspec's file system of an address, the path in it). Raises ValueError for another protocol, and where a package
    is missing."""
    import fsspec

    check_protocol(path)
    try:
        options: dict[str, Any] = {}
        if path.startswith(("http:", "https:")):
            options = {"client_kwargs": {"response_class": response_class(redirects)}}
        system, name = fsspec.core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return system, str(name)
