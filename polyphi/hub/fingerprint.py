"""A hash that tells checkpoints apart without reading all of their weights."""

import hashlib
from pathlib import Path

STRIDE = 64 << 20
"""Bytes of a weights file between two pieces that the hash includes."""
PIECE = 1 << 16


def fingerprint(folder: Path) -> str:
    """Return a hash of a checkpoint: its configuration, and the names, sizes and a piece of every 64 MiB of its
    weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, STRIDE):
                file.seek(start)
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:32]
