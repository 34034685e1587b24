"""Hashes of stored models: whether every byte is as it was downloaded or quantized, without a connection.

>>> record(folder)                   # of a model that polyphi quantizes: a file SHA256SUMS, which `sha256sum -c` reads
>>> check(folder)                    # raises ValueError where a bit is another one

A download needs no record: in huggingface_hub's cache the content of a file lies in a file that is named by its hash,
SHA-256 or git's SHA-1. This module imports no torch.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from polyphi.checkpoints import files
from polyphi.checkpoints.files import DIGEST
from polyphi.runtime.files import sha256, size_text, write_whole

log = logging.getLogger(__name__)
SUMS = "SHA256SUMS"
PIECE = 1 << 20
SHOWN = 3
"""Files that an error names; of others only the number."""


def mismatch(
    path: Path, digest: str, read: Callable[[int], None] = lambda count: None
) -> str | None:
    """How the content of a file differs from its hash (DIGEST), None if it doesn't. `read` is called with the bytes
    that have just been read."""
    try:
        if len(digest) == 64:
            content = hashlib.sha256()
        else:
            content = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                content.update(piece)
                read(len(piece))
    except OSError as error:
        return f"{path} can't be read ({error.strerror})"
    if content.hexdigest() != digest:
        return f"{path} has the hash {content.hexdigest()[:12]}, expected {digest[:12]}"
    return None


def record(folder: Path) -> None:
    """Write the hashes of all files of a folder into it."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    write_whole(folder / SUMS, "".join(f"{sha256(folder / name)}  {name}\n" for name in names))


def recorded(folder: Path) -> dict[Path, str]:
    """The files of a stored model, each with its hash. Raises ValueError where none is recorded, for the whole folder
    or for a file in it."""
    folder = folder.resolve()
    blobs = folder.parent.parent / "blobs"
    present = {p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if folder.parent.name == "snapshots" and blobs.is_dir():
        links = {
            p: Path(os.path.normpath(p.parent / p.readlink())) for p in present if p.is_symlink()
        }
        hashes = {p: content.name for p, content in links.items() if content.parent == blobs}
    elif (folder / SUMS).is_file():
        hashes = _read_sums(folder)
        present.discard(folder / SUMS)
    else:
        raise ValueError(
            f"no hashes are recorded for {folder}, so its content can't be verified: expected a model of the Hub "
            "(owner/name) or a folder of polyphi's cache"
        )
    added = [p for p in sorted(present) if not DIGEST.fullmatch(hashes.get(p, ""))]
    if added:
        raise ValueError(
            f"no hash is recorded for {_listed(added)}, so the model can't be verified: remove files that were added, "
            "and keep the Hub's cache on a file system with symbolic links"
        )
    return hashes


def _read_sums(folder: Path) -> dict[Path, str]:
    hashes = {}
    for line in (folder / SUMS).read_text("utf-8", "replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if not DIGEST.fullmatch(digest) or not files.is_inner(name):
            raise ValueError(
                f"{folder / SUMS} is damaged: expected a hash and a file, found {line!r:.200}"
            )
        hashes[folder / name] = digest
    return hashes


def damage(folder: Path, progress: Callable[[float], None] = lambda share: None) -> str | None:
    """A message with the files of a stored model that differ from their recorded hash or are missing; None if none
    does. Raises ValueError as `recorded`. `progress` is called with the share of the bytes that are read."""
    hashes = recorded(folder)
    total = sum(path.stat().st_size for path in hashes if path.is_file())
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress(min(1.0, done / total))

    faults = [text for path, digest in hashes.items() if (text := mismatch(path, digest, read))]
    if not faults:
        log.info("verified %d files, %s, in %s", len(hashes), size_text(total), folder)
    return _listed(faults) if faults else None


def check(folder: Path, progress: Callable[[float], None] = lambda share: None) -> None:
    """Raise ValueError for a stored model with `damage`, or without recorded hashes."""
    if text := damage(folder, progress):
        raise ValueError(
            f"{text}: damaged after it was stored; with a connection, `polyphi pull owner/name --verify` (and --quant "
            "of a quantized model) repairs it"
        )


def _listed(items: list[Path] | list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more
