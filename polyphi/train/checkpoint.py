"""Checkpoints that are whole or absent, and hashes that prove what stayed frozen.

A checkpoint is a folder `step_00000120` with `tensors.safetensors` (trainable tensors, throw-away module, optimiser
moments) and `state.json` (step, data cursor, counters, hashes of what is frozen). Random state isn't in it: every step
draws from a seed of its own. It is written under another name, synced, renamed; then `latest` moves, then older ones
go. Nothing is pickled.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LATEST = "latest"


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    flat = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)}".encode())
    hasher.update(flat.view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Name -> SHA-256."""
    return {name: digest(tensor) for name, tensor in tensors}


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file, whole or not at all. Raises OSError that says what to do when the disk is full."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(
            {name: t.detach().contiguous() for name, t in tensors.items()},
            partial,
            metadata=metadata,
        )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except Exception as error:
        partial.unlink(missing_ok=True)
        # safetensors raises errors of its own, with the system's words in them
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            raise _disk_full(path, size) from error
        raise


def _disk_full(path: Path, size: int) -> OSError:
    what = f"{path} needs {size / 1e6:.1f} MB" if size else f"{path} could not be written"
    return OSError(
        errno.ENOSPC,
        f"the disk is full: {what}; free some space and run again, the checkpoint before it is whole",
    )


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write checkpoint `step` under `folder`, move `latest` to it and drop the ones before. If anything fails, the
    checkpoint before it stays the latest."""
    name = f"step_{step:08d}"
    partial = folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step_*.partial"):  # of a run that was killed
            shutil.rmtree(left)
        partial.mkdir()
        write_tensors(partial / "tensors.safetensors", tensors)
        write_json(
            partial / "state.json",
            {**state, "step": step, "sha256": _file_digest(partial / "tensors.safetensors")},
        )
        shutil.rmtree(
            folder / name, ignore_errors=True
        )  # of a run that was killed before `latest` moved
        partial.rename(folder / name)
        _sync(folder)
        write_json(folder / LATEST, name)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (
            isinstance(error, OSError)
            and error.errno == errno.ENOSPC
            and "the disk is full" not in str(error)
        ):
            raise _disk_full(folder / name, 0) from error
        raise
    for old in folder.glob("step_*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the latest checkpoint, or None. Raises ValueError if it is damaged."""
    if not (folder / LATEST).exists():
        return None
    path = folder / json.loads((folder / LATEST).read_text())
    try:
        state = json.loads((path / "state.json").read_text())
        found = _file_digest(path / "tensors.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; remove {folder} to start the stage again"
        ) from error
    if found != state["sha256"]:
        raise ValueError(
            f"{path} is damaged: expected SHA-256 {state['sha256']}, found {found}; "
            f"remove {folder} to start the stage again"
        )
    return load_file(path / "tensors.safetensors"), state


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Tensor]:
    """AdamW's moments and step counts, by parameter name (`names` maps id(parameter) to it)."""
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, moments in optimiser.state.items()
        for key, value in moments.items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    names: Mapping[int, str],
    stored: Mapping[str, Tensor],
    like: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """The reverse, in place. `like(tensor, parameter)` places a moment where its parameter is."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            if f"step/{name}" in stored:
                optimiser.state[parameter] = {
                    "step": stored[f"step/{name}"].to(parameter.device),
                    **{
                        k: like(stored[f"{k}/{name}"], parameter) for k in ("exp_avg", "exp_avg_sq")
                    },
                }


def drop(folder: Path) -> None:
    """Remove a finished stage's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
