"""Atomic writes of files and folders; locks between processes; hashes.

>>> write_whole(Path("notes.txt"), "all of it")
>>> with whole_folder(Path("index")) as partial:
...     (partial / "items.json").write_text("[]")

Each is written under another name in the same folder, synced to the disk and renamed. An error (a full disk, say)
removes the partial file and leaves the previous one; after a kill the next writer overwrites the partial file.
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
    """The path of a partial file to write, which replaces `path` if the block ends without an error. `shared`: several
    threads or processes may write the same file at once, and the last one stays."""
    partial = _partial(path, shared)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink()
        raise
    sync(path.parent)


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file (text as UTF-8) atomically."""
    with whole_file(path, shared=shared) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def whole_folder(path: Path, *, durable: bool = True, shared: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which replaces `path` and its content if the block ends without an error. Without
    `durable` its files aren't synced: for many small ones that can be regenerated. `shared` as in `whole_file`."""
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
    """Rename `source` to `target`. An existing target is renamed first, since a rename can't replace a folder with
    content, and restored if the rename fails."""
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


def cache_folder() -> Path:
    """Where polyphi stores what it downloads or builds once: `$POLYPHI_CACHE`, else `$XDG_CACHE_HOME/polyphi`, else
    `~/.cache/polyphi`."""
    if folder := os.environ.get("POLYPHI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyphi"


def size_text(count: float) -> str:
    """Bytes for display: 7.7 GB, 28.6 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
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
    """Close the locks that a forked process inherits: otherwise it would hold them after its parent is killed."""
    for lock in _locks:
        lock.close()
    _locks.clear()


os.register_at_fork(after_in_child=_release_locks)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` against other processes and other calls in this one. Waits until the lock is free;
    without `wait` yields False at once if it is taken. The lock ends with its process."""
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
