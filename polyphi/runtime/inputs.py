"""Input files: readers of rows note each file that they read, so that a corpus is built again when one has changed.

>>> start()
>>> rows = list(own.read("calls.jsonl"))              # notes calls.jsonl and the clips that its rows name
>>> stop().save(Path("inputs/00000.jsonl"))
>>> change(Path("inputs"))                            # "" or, say, "calls.jsonl has another content"

A file is unchanged if its size and time are, or else if its SHA-256 is. Files that appear in a folder, or match a
pattern, count as a change, too. Paths are relative to the folder in which the process runs, as the reader was given
them. Memory doesn't grow with the number of files: a recording is a temporary file of JSON lines.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from polyphi.runtime.files import sha256, whole_file

FileState = tuple[int, int, str] | None
"""Size in bytes, time in ns and SHA-256 of a file; None for an absent file."""
IN_MEMORY = 1 << 20
"""Bytes of a recording that are kept in memory; longer ones go to the disk."""
REMEMBERED = 1024
"""Files of which a second note is left out, and whose SHA-256 is kept: those noted last."""


class Inputs:
    """The state of each noted file when it was read, and for each noted folder or pattern the endings of its files and
    a hash of their names, as lines [kind, name, ...]."""

    def __init__(self) -> None:
        self._recent: dict[str, None] = {}

    @cached_property
    def _lines(self) -> Any:
        return tempfile.SpooledTemporaryFile(IN_MEMORY, "w+", encoding="utf-8")

    def add(self, *line: Any) -> None:
        """Note a file or listing."""
        self._lines.write(json.dumps(line) + "\n")

    def is_new(self, name: str) -> bool:
        """Whether a file isn't among the last ones; it is from now on."""
        if name in self._recent:
            return False
        self._recent[name] = None
        if len(self._recent) > REMEMBERED:
            del self._recent[next(iter(self._recent))]
        return True

    def save(self, path: Path) -> None:
        """Write the inputs as JSON lines, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines.seek(0)
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            shutil.copyfileobj(self._lines, file)


_recordings: list[Inputs] = []  # the one in progress, if any


def start() -> None:
    """Record what this process reads from now on; a recording before is forgotten."""
    _recordings[:] = [Inputs()]


def stop() -> Inputs:
    """Return what was recorded, and record no more."""
    return _recordings.pop() if _recordings else Inputs()


def note(path: Path | str) -> None:
    """Note a file that is about to be read; an absent one, too, if it may appear later."""
    for inputs in _recordings:
        if inputs.is_new(str(path)):
            inputs.add("file", str(path), _state(str(path)))


def note_listing(pattern: Path | str, endings: Sequence[str] = ("",)) -> None:
    """Note a folder (with its subfolders) or a pattern whose files with these endings are about to be read."""
    for inputs in _recordings:
        inputs.add("listing", str(pattern), list(endings), _names(str(pattern), endings))


def _saved(folder: Path) -> Iterator[list[Any]]:
    """The lines of the inputs that were saved in a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def change(folder: Path) -> str:
    """Return the first change of the inputs that were saved in a folder, in words: of a file, or else of a listing; ""
    if there is none."""
    listing = ""
    for kind, name, *values in _saved(folder):
        if kind == "file":
            (state,) = values
            if not _unchanged(name, state):
                if not os.path.exists(name):
                    return f"{name} is gone"
                return f"{name} has another content" if state else f"{name} is new"
        elif not listing and _names(name, values[0]) != values[1]:
            listing = f"{name} has other files"
    return listing


def digest(folder: Path) -> str:
    """Return a hash of the contents and names of the inputs that were saved in a folder."""
    total = hashlib.sha256()
    for kind, name, *values in _saved(folder):
        content = values if kind == "listing" else [values[0] and values[0][2]]
        total.update(json.dumps([kind, name, *content]).encode())
    return total.hexdigest()


def _unchanged(path: str, state: FileState) -> bool:
    """Return whether a file is in a state; it is read only if its size is the same and its time isn't."""
    if state is None or not os.path.isfile(path):
        return state is None and not os.path.isfile(path)
    size, time, digest = state
    stat = os.stat(path)
    if (stat.st_size, stat.st_mtime_ns) == (size, time):
        return True
    return stat.st_size == size and _state(path) == (size, stat.st_mtime_ns, digest)


def _state(path: str) -> FileState:
    if not os.path.isfile(path):
        return None
    stat = os.stat(path)
    digest = _digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
    return stat.st_size, stat.st_mtime_ns, digest


@lru_cache(maxsize=REMEMBERED)
def _digest(path: str, _size: int, _modified: int) -> str:
    """Return the SHA-256 of a file, which is read once."""
    return sha256(Path(path))


def _names(pattern: str, endings: Sequence[str]) -> str:
    """Return a hash of the names of files in a folder or of a pattern; hidden folders and files don't count."""
    folder = Path(pattern)
    if folder.is_dir():
        paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        names = (str(p) for p in paths if not any(part.startswith(".") for part in p.parts))
    else:
        names = (name for name in glob(pattern, recursive=True) if Path(name).is_file())
    chosen = sorted(name for name in names if name.lower().endswith(tuple(endings)))
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
