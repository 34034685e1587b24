"""Files anywhere: local paths, and addresses that fsspec reads (s3://, https://, gs://, hf://, ...)."""

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
PACKED = (".gz", ".tgz")
"""Endings of compressed files."""


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, which may be an address."""
    return f"{folder.rstrip('/')}/{name}"


def below(root: str, name: str, confined: bool) -> str:
    """The path of a file that a row names: an address, or one below `root`. With `confined`, raises ValueError for an
    address elsewhere."""
    if confined and (is_remote(name) or ".." in name.split("/")):
        raise ValueError(f"expected a path inside {root}, found {name}")
    return name if is_remote(name) else join(root, name)


def without_braces(pattern: str) -> list[str]:
    """The texts that a pattern with {000..122} stands for; itself without braces."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    each = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    before, after = pattern[: match.start()], without_braces(pattern[match.end() :])
    return [before + number + rest for number in each for rest in after]


def exists(path: str) -> bool:
    """Whether there is a file anywhere."""
    if not is_remote(path):
        return Path(path).is_file()
    system, name = file_system(path)
    return bool(system.isfile(name))


def read_bytes(path: str) -> bytes:
    """The content of a file anywhere."""
    with open_file(path, unpack=False) as stream:
        data: bytes = stream.read()
    return data


@contextmanager
def open_file(path: str, unpack: bool = True) -> Iterator[Any]:
    """A file anywhere, open for reading its bytes, which are unpacked if it is compressed. Raises OSError."""
    if is_remote(path):
        system, name = file_system(path)
        stream: Any = system.open(name, "rb")
    else:
        stream = open(path, "rb")  # noqa: SIM115 - closed below
    with stream:
        if unpack and path.endswith(PACKED):
            with gzip.open(stream) as unpacked:
                yield unpacked
        else:
            yield stream


def file_system(path: str) -> tuple[Any, str]:
    """(fsspec's file system of an address, the path in it). Raises ValueError where a package is missing."""
    import fsspec

    try:
        system, name = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return system, str(name)
