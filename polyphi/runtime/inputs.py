"""Input files: readers of rows note each file that they read, so that a corpus is built again when one has changed.

>>> start()
>>> rows = list(own.read("calls.jsonl"))              # notes calls.jsonl and the clips that its rows name
>>> stop().save(Path("inputs/00000.json"))
>>> change(Path("inputs"))                            # "" or, say, "calls.jsonl has another content"

A file is unchanged if its size and time are, or else if its SHA-256 is. Files that appear in a folder, or match a
pattern, count as a change, too. Paths are relative to the folder in which the process runs, as the reader was given
them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from glob import glob
from pathlib import Path

from polyphi.runtime.files import sha256, write_json

State = tuple[int, int, str] | None
"""Size in bytes, time in ns and SHA-256 of a file; None for an absent one."""


@dataclass
class Inputs:
    """The state of each noted file when it was read, and for each noted folder or pattern the endings of its files and
    a hash of their names."""

    files: dict[str, State] = field(default_factory=dict)
    listings: dict[str, tuple[list[str], str]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the inputs as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))


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
        if str(path) not in inputs.files:
            inputs.files[str(path)] = _state(Path(path))


def note_listing(pattern: Path | str, endings: Sequence[str] = ("",)) -> None:
    """Note a folder (with its subfolders) or a pattern whose files with these endings are about to be read."""
    for inputs in _recordings:
        inputs.listings[str(pattern)] = (list(endings), _names(str(pattern), endings))


def change(folder: Path) -> str:
    """Return the first change of the inputs that were saved in a folder, in words; "" if there is none."""
    for path in sorted(folder.glob("*.json")):
        saved = json.loads(path.read_text(encoding="utf-8"))
        for name, state in saved["files"].items():
            if not _unchanged(Path(name), state):
                if not Path(name).exists():
                    return f"{name} is gone"
                return f"{name} has another content" if state else f"{name} is new"
        for pattern, (endings, names) in saved["listings"].items():
            if _names(pattern, endings) != names:
                return f"{pattern} has other files"
    return ""


def digest(folder: Path) -> str:
    """Return a hash of the contents and names of the inputs that were saved in a folder."""
    files: dict[str, str | None] = {}
    listings: dict[str, list[list[str] | str]] = {}
    for path in sorted(folder.glob("*.json")):
        saved = json.loads(path.read_text(encoding="utf-8"))
        files |= {name: state and state[2] for name, state in saved["files"].items()}
        listings |= saved["listings"]
    text = json.dumps([files, listings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _unchanged(path: Path, state: State) -> bool:
    """Return whether a file is in a state; it is read only if its size is the same and its time isn't."""
    if state is None or not path.is_file():
        return state is None and not path.is_file()
    size, time, digest = state
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (size, time):
        return True
    return stat.st_size == size and _state(path) == (size, stat.st_mtime_ns, digest)


def _state(path: Path) -> State:
    if not path.is_file():
        return None
    stat = path.stat()
    digest = _digest(str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    return stat.st_size, stat.st_mtime_ns, digest


@cache
def _digest(path: str, _size: int, _modified: int) -> str:
    """Return the SHA-256 of a file, which is read once."""
    return sha256(Path(path))


def _names(pattern: str, endings: Sequence[str]) -> str:
    """Return a hash of the names of files in a folder or of a pattern; hidden folders and files don't count."""
    folder = Path(pattern)
    if folder.is_dir():
        paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        names = [str(p) for p in paths if not any(part.startswith(".") for part in p.parts)]
    else:
        names = [name for name in glob(pattern, recursive=True) if Path(name).is_file()]
    chosen = sorted(name for name in names if name.lower().endswith(tuple(endings)))
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
