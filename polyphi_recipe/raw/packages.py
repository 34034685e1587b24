"""Sources of raw material: data packages are downloaded and unpacked into a cache, never installed.

>>> folder = unpack("libreoffice-help-fr", work.cache, work.report)      # .../usr/share/... below it, or None
>>> folder and sorted(folder.rglob("*.html"))

Debian packages are fetched by `apt-get download` and `dpkg -x` (no root needed), wheels by `pip download --no-deps`. A
source that isn't available on this platform is skipped with one line and `None`; corpora then work without it. Folders
are unpacked atomically, and `unpack` may be called from several threads and processes at once.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyphi.runtime.files import locked, sha256, whole_folder, write_whole


@dataclass(frozen=True)
class Package:
    """A source of data. `kind` is its form: "deb" and "wheel" are unpacked into the cache, "installed" is present
    (Python itself, a dependency), "generated" is made by polyphi's code. `sha256` pins a wheel's file."""

    name: str
    kind: Literal["deb", "wheel", "installed", "generated"]
    licence: str
    origin: str
    what: str
    version: str = ""
    sha256: str = ""


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LIBREOFFICE: dict[str, str] = _DATA["libreoffice"]
"""Language -> Debian package of LibreOffice's help pages; a paragraph has the same id in every language."""
SOURCES = {source.name: source for source in (Package(**row) for row in _DATA["sources"])}
"""Name -> origin and licence of all sources of corpora; NOTICE lists them."""


_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()
_missing: set[tuple[str, str]] = set()


class Unavailable(Exception):
    """The source isn't available on this platform; the message is the reason in one line."""


def unpack(name: str, cache: Path, report: Callable[[str], None] = print) -> Path | None:
    """Return the folder of the unpacked package (of a wheel: its modules; of a Debian package: `usr/...`), downloaded
    on first use; or None, reported in one line, if it isn't available here. Raises OSError if the disk is full."""
    if name not in SOURCES or SOURCES[name].kind not in ("deb", "wheel"):
        known = ", ".join(s.name for s in SOURCES.values() if s.kind in ("deb", "wheel"))
        raise ValueError(f"no downloadable source is called {name!r}; expected one of {known}")
    source, cache = SOURCES[name], Path(cache).absolute()
    folder = cache / name
    with _guard:
        lock = _locks.setdefault(str(folder), threading.Lock())
    with lock:
        if (folder / "SOURCE.json").exists():
            return folder
        if (str(cache), name) in _missing:
            return None
        with locked(cache / f".{name}.lock"):
            if (folder / "SOURCE.json").exists():
                return folder
            try:
                with whole_folder(folder, durable=False) as partial:
                    _fill(source, partial, cache)
            except Unavailable as reason:
                _missing.add((str(cache), name))
                report(f"skipped {name} ({source.what}): {reason}")
                return None
            return folder


def o200k_base(cache: Path) -> Path:
    """Return the rank file of the o200k_base vocabulary in the litellm wheel. Raises ValueError if it isn't
    available."""
    folder = unpack("litellm", cache)
    if folder is None:
        raise ValueError(
            "the o200k_base vocabulary is in the litellm wheel, which could not be downloaded; see the line above"
        )
    return (
        folder
        / "litellm"
        / "litellm_core_utils"
        / "tokenizers"
        / "fb374d419588a4632f3f557e76b4b70aebbca790"
    )


def _fill(source: Package, partial: Path, cache: Path) -> None:
    """Download into `partial`, unpack there, delete the archive and write SOURCE.json last."""
    package = (
        _download_deb(source, partial, cache)
        if source.kind == "deb"
        else _download_wheel(source, partial)
    )
    digest = sha256(package)
    if source.sha256 and digest != source.sha256:
        raise Unavailable(
            f"{package.name} has SHA-256 {digest[:12]}..., expected {source.sha256[:12]}..."
        )
    if source.kind == "deb":
        _run(["dpkg", "-x", package.name, "."], partial)
    else:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(partial)
    record = {
        "file": package.name,
        "sha256": digest,
        "licence": source.licence,
        "origin": source.origin,
    }
    package.unlink()
    (partial / "SOURCE.json").write_text(json.dumps(record, indent=1))


def _download_deb(source: Package, partial: Path, cache: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Unavailable("apt-get and dpkg are not on this system; Debian packages need them")
    # As root, apt would download as the user _apt, which can't write here.
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", source.name]
    try:
        _run(download, partial)
    except Unavailable:
        # The system may have no package lists yet (fresh containers); lists in the cache need no root.
        _run([*download[:2], *_own_lists(cache), *download[2:]], partial)
    return _single(partial, "*.deb")


def _own_lists(cache: Path) -> list[str]:
    """Return options that point apt at package lists under the cache, updated once per cache."""
    state = cache / ".apt"
    options = [
        "-o",
        f"Dir::State::lists={state}/lists",
        "-o",
        f"Dir::Cache={state}/cache",
        "-o",
        "Debug::NoLocking=1",
    ]
    with _guard, locked(cache / ".apt.lock"):
        if not (state / "done").exists():
            for folder in ("lists/partial", "cache/archives/partial"):
                (state / folder).mkdir(parents=True, exist_ok=True)
            _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", *options, "update"], cache)
            write_whole(state / "done", "")
    return options


def _download_wheel(source: Package, partial: Path) -> Path:
    pip = [sys.executable, "-m", "pip"]
    # Data wheels may require another Python than this one; they are only unzipped, so any version works.
    target = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.13",
        "--disable-pip-version-check",
        "-q",
    ]
    _run([*pip, "download", *target, f"{source.name}=={source.version}", "-d", "."], partial)
    return _single(partial, "*.whl")


def _single(folder: Path, pattern: str) -> Path:
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise Unavailable(f"expected one {pattern} after the download, found {len(paths)}")
    return paths[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} failed: {type(error).__name__}") from error
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        if any("No space left" in line for line in lines):
            raise OSError(errno.ENOSPC, f"no space left for {folder.parent}")
        errors = (
            [line for line in lines if line.startswith(("E:", "ERROR", "dpkg", "Err"))]
            or lines
            or ["no message"]
        )
        raise Unavailable(f"{Path(command[0]).name} failed: {errors[0][:160]}")
