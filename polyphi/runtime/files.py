"""Files and folders that are there whole or not at all, whatever stops the process that writes them; locks between
processes; hashes.

>>> write_whole(Path("notes.txt"), "all of it")
>>> with whole_folder(Path("index")) as partial:
...     (partial / "items.json").write_text("[]")

Each is written under another name beside its place, synced to the disk and renamed. An error (a full disk, say)
removes what was written so far and leaves what was there before; after a kill the next writer overwrites the rest.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The path of a file to write; it takes the place of `path` once the block ends without an error. `shared`:
    several threads or processes may write the same file at once, and the last one stays."""
    partial = _partial(path, shared)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the error that led here is the one to report
            partial.unlink()
        raise
    sync(path.parent)


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file (text as UTF-8), whole or not at all."""
    with whole_file(path, shared=shared) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def whole_folder(path: Path, *, durable: bool = True, shared: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `path` (and of what is there) once the block ends without an
    error. Without `durable` its files aren't synced: for many small ones that can be made again. `shared` as in
    `whole_file`."""
    partial = _partial(path, shared)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if durable:
            for file in (p for p in partial.rglob("*") if p.is_file()):
                sync(file)
        _replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def _partial(path: Path, shared: bool) -> Path:
    writer = f".{os.getpid()}.{threading.get_ident()}" if shared else ""
    return path.with_name(f".{path.name}{writer}.partial")


def _replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`. What is there is renamed first, since a rename can't replace a full folder, and
    comes back where the rename fails."""
    if not target.exists():
        source.rename(target)
        return
    old = source.with_name(source.name + ".old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
    target.rename(old)
    try:
        source.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, last through a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_locks: set[IO[str]] = set()


def _release_locks() -> None:
    """In a forked process: it holds its parent's locks too, and would still hold them after the parent is killed."""
    for lock in _locks:
        lock.close()
    _locks.clear()


os.register_at_fork(after_in_child=_release_locks)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` against other processes (and other calls in this one). Waits for whoever holds it;
    without `wait`, yields False at once where somebody does. The lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        _locks.add(lock)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            _locks.discard(lock)
