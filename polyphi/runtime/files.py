"""Atomic writes of files and folders, which delete nothing that others wrote; appended lines; locks between processes;
hashes.

>>> write_whole(Path("notes.txt"), "all of it")
>>> with whole_folder(Path("index")) as partial:
...     (partial / "items.json").write_text("[]")
>>> append(Path("log.jsonl"), b'{"step": 1}\\n')

Each is written under a name of its own in the same folder, synced to the disk, and takes the other's place in one step.
An error (a full disk, say) removes the partial file and leaves the previous one. What a kill leaves is removed by the
next writer; a partial file that is being written is locked.

What polyphi writes on disk goes through this module (tests/architecture/test_writes.py), and each step of it calls
`on_step`: tests make it fail there.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

RECORD = ".polyphi.json"
"""File of a written folder: size and time of change of each file in it, by name (`record_files`)."""

Step = Literal[
    "created", "written", "synced", "renamed", "appended", "removing", "locking", "locked"
]
"""A partial file or folder was `created` (empty) and `written`, the bytes of a file or the entries of a folder were
`synced`, a name was `renamed` or a line `appended` (neither synced yet); next comes the `removing` of something or the
wait for a lock (`locking`), which then is `locked`."""


def _nothing(step: Step, path: Path) -> None: ...


on_step: Callable[[Step, Path], None] = _nothing
"""Called at each step of a write; tests put their faults here."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a partial file to write, which replaces `path` if the block ends without an error. Several threads
    and processes may write the same file at once; the last one stays."""
    with _locked_partial(path, folder=False) as partial:
        try:
            yield partial
            on_step("written", partial)
            sync(partial)
            rename(partial, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                partial.unlink()
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for a file with other content."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


@contextmanager
def whole_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty folder to fill, which replaces `path` and its content if the block ends without an error. Without
    `durable` its files aren't synced: for many small ones that can be regenerated. Where `path` is a link, the folder
    that it leads to is replaced. Writers at once as in `whole_file`."""
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    restore(path)
    with _locked_partial(path, folder=True) as partial:
        try:
            yield partial
            on_step("written", partial)
            if durable:
                for inner in (partial, *partial.rglob("*")):
                    if inner.is_file() or inner.is_dir():
                        sync(inner)
            _replace_folder(partial, path)
            on_step("renamed", path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(path.parent)
        shutil.rmtree(partial, ignore_errors=True)  # the previous folder


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in the same file system, in one step. A file at `target` is replaced, a folder
    must be empty. The content of `source` should be synced already."""
    source.replace(target)
    on_step("renamed", target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with its content; nothing if it is absent."""
    on_step("removing", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def append(path: Path, content: bytes, *, durable: bool = True) -> int:
    """Append whole lines, or a block, to a file, which is created if absent, and return the offset where they start.
    Safe with concurrent processes and threads: lines neither mix nor get lost, and a last line that was cut off is
    ended first. Without `durable` they aren't synced."""
    with appending(path, durable=durable) as write:
        return write(content)


@contextmanager
def appending(path: Path, *, durable: bool = True) -> Iterator[Callable[[bytes], int]]:
    """A function that appends to a file as `append` does, while other processes wait."""
    with path.open("ab+", buffering=0) as file:
        on_step("locking", path)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        on_step("locked", path)

        def write(content: bytes) -> int:
            start, rest = file.seek(0, os.SEEK_END), memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            on_step("appended", path)
            if durable:
                os.fsync(file.fileno())
                on_step("synced", path)
            return start

        try:
            if (size := file.seek(0, os.SEEK_END)) and os.pread(
                file.fileno(), 1, size - 1
            ) != b"\n":
                file.write(b"\n")
            yield write
        finally:
            with suppress(OSError):  # at once, also for a process that was forked meanwhile
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _locked_partial(path: Path, *, folder: bool) -> Iterator[Path]:
    """Create a partial file or folder for `path`, and lock it while it is written."""
    remove_leftovers(path)
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        partial.mkdir() if folder else partial.touch()
        try:
            handle = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another writer removed it before it was locked
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if partial.exists():
            break
        os.close(handle)  # as above
    try:
        on_step("created", partial)
        yield partial
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Delete the partial files and folders that killed writers of `path` left."""
    if path.parent.exists():
        for entry in os.scandir(path.parent):
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".partial"):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(partial: Path) -> None:
    """Delete the partial file or folder of a killed writer. Where the file system can't lock it, it stays."""
    with suppress(OSError):
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        finally:
            os.close(handle)


def _replace_folder(source: Path, target: Path) -> None:
    """Put the folder `source` at `target` in one step; `source` is then the previous folder, if there was one."""
    while True:
        try:
            if _exchange(source, target):
                return
            break
        except FileNotFoundError:
            try:
                source.rename(target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # another writer was faster
    old = _old(target)
    with locked(_renaming(target)):
        shutil.rmtree(old, ignore_errors=True)  # of a writer that was killed after both renames
        target.rename(old)
        try:
            source.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.rename(source)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system can't."""
    if b.exists() and not b.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(b))
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    here, exchange = -100, 2  # Linux: AT_FDCWD, RENAME_EXCHANGE; macOS: RENAME_SWAP
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, exchange)
        else:
            failed = libc.renameat2(here, names[0], here, names[1], exchange)
    except AttributeError:
        failed = -1
        ctypes.set_errno(errno.ENOSYS)
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number), str(b))
    return not failed


def restore(path: Path) -> None:
    """Put back a folder whose writer was killed between two renames, on a file system that can't exchange folders."""
    if not path.exists() and _old(path).exists():
        with locked(_renaming(path)):
            if not path.exists():
                _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _renaming(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def record_files(folder: Path, except_for: Collection[str] = ()) -> None:
    """Record the files of a folder, except for some names, as ours (`foreign_files`)."""
    states = {name: _state(folder / name) for name in _files(folder) if name not in except_for}
    (folder / RECORD).write_text(json.dumps(states, indent=1, ensure_ascii=False))


def record_file(folder: Path, name: str) -> None:
    """Record one more file, or the new content of one, in a folder whose other files are recorded."""
    states = {**read_object(folder / RECORD), name: _state(folder / name)}
    write_json(folder / RECORD, states)


def foreign_files(folder: Path) -> list[str]:
    """The files, links and empty folders in a folder that aren't recorded as ours, or were changed since."""
    recorded: Any = {}
    with suppress(OSError, ValueError):
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    states = {name: _state(folder / name) for name in _files(folder)}
    return [n for n, s in states.items() if s is None or dict(recorded).get(n) != s]


def _files(folder: Path) -> list[str]:
    """The files, links and empty folders in a folder, without the record."""
    inner = (path for path in folder.rglob("*") if path != folder / RECORD)
    ends = [p for p in inner if p.is_symlink() or not p.is_dir() or not any(p.iterdir())]
    return sorted(path.relative_to(folder).as_posix() for path in ends)


def _state(path: Path) -> list[int] | None:
    """Size and time of the last change (in ns) of a file; None for what isn't one."""
    if path.is_symlink() or not path.is_file():
        return None
    return [path.stat().st_size, path.stat().st_mtime_ns]


def cache_folder() -> Path:
    """The folder of what polyphi downloads or builds once: `$POLYPHI_CACHE`, else `$XDG_CACHE_HOME/polyphi`, else
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
    on_step("synced", path)


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
def locked(
    path: Path, wait: bool = True, report: Callable[[str], None] = lambda holder: None
) -> Iterator[bool]:
    """Hold the lock file `path` against other processes and other calls in this one. Waits until the lock is free, and
    calls `report` with the process that has it, such as "process 4711 on lab-3"; without `wait` yields False at once if
    it is taken. The lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        _locks.add(lock)
        try:
            on_step("locking", path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                lock.seek(0)
                report(lock.read() or "another process")
                fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(OSError):  # the lock holds on a full disk, too
                os.truncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
            on_step("locked", path)
            yield True
        finally:
            _locks.discard(lock)
