"""Caches, the models in them, and free disk space."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyphi.doctor.findings import FindingResult, NamedResult, short
from polyphi.hub import cache
from polyphi.runtime.files import cache_folder, size_text


@dataclass(frozen=True)
class Folder:
    """A cache: bytes of its files, free bytes of its disk, and whether it can be written."""

    name: str
    path: Path
    bytes: int
    free: int
    writable: bool


def folders() -> list[Folder]:
    """The folders of our cache and, where huggingface_hub can be imported, of its cache."""
    result = [_folder("polyphi", cache_folder())]
    try:
        from huggingface_hub import constants
    except ImportError:
        return result
    return [*result, _folder("Hub", Path(constants.HF_HUB_CACHE))]


def _folder(name: str, path: Path) -> Folder:
    parent = next(p for p in (path, *path.parents) if p.exists())
    return Folder(
        name, path, _bytes(path), shutil.disk_usage(parent).free, os.access(parent, os.W_OK)
    )


def _bytes(folder: Path) -> int:
    """Bytes of the files in a folder; symbolic links, as the Hub's cache has, count as none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return total


def entries() -> list[cache.StoredModel]:
    """Stored models (`polyphi cache list`); none where huggingface_hub can't be imported."""
    try:
        return cache.entries()
    except (ImportError, OSError):
        return []


def cache_results(
    caches: list[Folder], stored: list[cache.StoredModel], models: list[Mapping[str, Any]]
) -> Iterator[NamedResult]:
    """Caches and free space for the smallest published model (`models`: rows of published.py)."""
    download = min((2 * model["parameters"] for model in models), default=0)
    for folder in caches:
        text = f"{short(folder.path)}: {size_text(folder.bytes)}, {size_text(folder.free)} free on its disk"
        variable = "POLYPHI_CACHE" if folder.name == "polyphi" else "HF_HOME"
        enough = stored or folder.free >= download
        result: FindingResult | str = text
        if not folder.writable:
            cure = f"export {variable}=FOLDER (one that you may write to)"
            result = FindingResult("wrong", f"{text}; it can't be written", cure)
        elif folder.name == "Hub" and not enough:
            text += f"; the smallest published model has {size_text(download)}"
            cure = "free some space, or export HF_HOME=FOLDER (on a larger disk)"
            result = FindingResult("missing", text, cure)
        yield f"{folder.name} cache", result


def model_results(models: list[cache.StoredModel]) -> Iterator[NamedResult]:
    """Stored models."""
    for entry in models:
        if entry.fault is None:
            yield entry.name, size_text(entry.bytes)
            continue
        quant = f" --quant {entry.quant}" if entry.quant else ""
        text = f"{size_text(entry.bytes)}, incomplete: {entry.fault}"
        yield entry.name, FindingResult("missing", text, f"polyphi pull {entry.repository}{quant}")
