"""Which files a row may name: those in the folder of its file, and those that the user allows. Rows are untrusted:
their files become part of a shard, which others may read.

>>> medium("data", "images/1.png")                    # /home/me/data/images/1.png
>>> medium("data", "../private.png")                  # ValueError
>>> medium("data", "https://x.org/1.png", ("https://x.org",))
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from polyphi.data.addresses import check_protocol, is_remote, join

OPTION = "--allowed-media-path PATH (in a recipe file: allowed_media_path) allows another one"


class Outside(ValueError):
    """A path that a row may not name."""


def inside(root: Path | str, name: Path | str, allowed: Sequence[str] = ()) -> Path:
    """The path of a file that a row names, in the folder `root` or in one of `allowed`, after links are followed.
    Raises ValueError for another path, and for one that isn't a regular file."""
    path = Path(os.path.realpath(Path(root) / name))
    if not any(path.is_relative_to(_real(f)) for f in (str(root), *allowed) if not is_remote(f)):
        raise Outside(f"expected a path inside the row's folder, found {name}")
    if not path.is_file():
        raise ValueError(f"there is no file {name} next to the row's")
    return path


def medium(root: Path | str, name: str, allowed: Sequence[str] = ()) -> Path | str:
    """The path or address of a file that a row names: in `root` or in one of `allowed`, folders or addresses. Raises
    ValueError for others."""
    if not (is_remote(name) or is_remote(str(root))):
        try:
            return inside(root, name, allowed)
        except Outside as error:
            raise Outside(f"{error}; {OPTION}") from None
    address = name if is_remote(name) else join(str(root), name)
    check_protocol(address)
    if not any(_is_below(address, base) for base in (str(root), *allowed)):
        raise Outside(f"expected a path inside {root}, found {name}; {OPTION}")
    return address


def check_listed(folder: str, path: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for a file of a folder that is a link out of it: an unpacked archive may have brought it."""
    if is_remote(path):
        if path != folder and not any(_is_below(path, base) for base in (folder, *allowed)):
            raise Outside(f"{path}: expected a file inside {folder}; {OPTION}")
        return
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(_real(f)) for f in (folder, *allowed) if not is_remote(f)):
        raise Outside(f"{path}: expected a file inside {folder}, found a link to {real}; {OPTION}")


def _real(folder: str) -> str:
    return os.path.realpath(Path(folder).expanduser())


def _is_below(address: str, base: str) -> bool:
    """Whether an address is in a folder at an address, also for a server that decodes or joins paths."""
    base, plain = f"{base.rstrip('/')}/", unquote(address)
    odd = "\\" in plain or not plain.isprintable() or ".." in plain.split("/")
    return is_remote(base.rstrip("/")) and address.startswith(base) and not odd
