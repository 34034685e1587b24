"""Atomic checkpoints, and hashes that prove which tensors stayed frozen.

A checkpoint is a folder `step_00000120` with safetensors files (trainable tensors, auxiliary head, optimizer moments),
one per process for its shards, and `state.json` (step, data cursor, counters, hashes of the frozen tensors, hashes of
the files). It holds no random state: every step has its own seed. torch's distributed checkpoints write and read the
tensors, so that a run can be resumed with another number of processes; nothing is pickled.

A checkpoint is written under another name, synced and renamed; then `latest` is changed, and all but the last two
checkpoints are removed::

    .step_00000120.partial/  ->  step_00000120/  ->  latest: "step_00000120"  ->  step_00000100/ removed, 110 kept

With `background`, a thread does this during the training, from a copy of the tensors.
"""

import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from polyphi.runtime import distributed
from polyphi.runtime.files import (
    read_object,
    remove,
    rename,
    sha256,
    sync,
    whole_file,
    write_json,
)

# The warning is of no use in a single process, and torch repeats it at each checkpoint.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")

LATEST = "latest"
MANIFEST, TRAINED = "manifest.json", "trained.safetensors"
"""Files of a finished stage: what it did, and the tensors that it trained."""
MAX_KEPT = 2
"""Checkpoints that aren't removed: the latest, and one to fall back to should a disk damage it."""


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    flat = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)}".encode())
    hasher.update(flat.view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Name -> SHA-256."""
    return {name: digest(tensor) for name, tensor in tensors}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Raises OSError with the size and the fix when the disk is full."""
    try:
        with whole_file(path) as partial:
            save_file(
                {name: t.detach().contiguous() for name, t in tensors.items()},
                partial,
                metadata=metadata,
            )
    except Exception as error:
        raise _with_advice(error, path, _size(tensors)) from error


def read_trained(folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors that a finished stage trained (all, or some names), in the CPU's memory. Raises ValueError for those
    that aren't as the stage wrote them, by the hashes in its manifest (the oldest manifests have none)."""
    path, manifest = folder / TRAINED, folder / MANIFEST
    expected = read_object(manifest).get("trained", {}) if manifest.exists() else {}
    advice = f"copy {folder} again from where it came, or remove it and run the stage again"
    try:
        with safe_open(path, "pt") as stored:
            tensors = {n: stored.get_tensor(n) for n in (stored.keys() if names is None else names)}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from error
    for name, tensor in tensors.items():
        if name in expected and (actual := digest(tensor)) != expected[name]:
            raise ValueError(
                f"{path} is damaged: expected {name} with SHA-256 {expected[name]} as in {MANIFEST}, found {actual}; "
                f"{advice}"
            )
    return tensors


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _with_advice(error: BaseException, path: Path, size: int) -> BaseException:
    """The error with a fix in its message where the disk is the cause, else the error itself. Libraries raise their own
    types of errors, which contain the system's message."""
    number, message = getattr(error, "errno", None), str(error)
    if "free some space" in message or "can't be written" in message:
        return error
    if number == errno.ENOSPC or "No space left" in message:
        return OSError(
            errno.ENOSPC,
            f"the disk is full: {path} needs {size / 1e6:.1f} MB; "
            "free some space and run again; the checkpoint before it is complete",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or any(
        phrase in message for phrase in ("Permission denied", "Read-only file system")
    ):
        return OSError(
            errno.EACCES,
            f"{path} can't be written: {message}; make its folder writable and run again; its checkpoints are complete",
        )
    return error


@dataclass(frozen=True)
class Stored:
    """A complete checkpoint: its folder and its state."""

    path: Path
    state: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the checkpoint's tensors."""
        return list(self.state["names"])

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, in each process its own parts; all processes call this together."""
        distributed_checkpoint.load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(self.path)),
            no_dist=distributed.world() == 1,
        )


class Checkpoints:
    """The checkpoints of one stage under `folder`. All processes call `save`, `wait` and `find` together."""

    def __init__(self, folder: Path, background: bool = False) -> None:
        self.folder = Path(folder)
        # One thread, so that checkpoints are written in turn; its collectives need a separate process group on the CPU.
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._group = distributed.cpu_group() if background else None
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write checkpoint `step`. If that fails, the checkpoint before it stays the latest; an error in the background
        is raised by the next `save` or `wait`."""
        self.wait()
        if self._latest() == _name(step):
            return
        if self._thread is None:
            self._write(step, tensors, state)
        else:
            # Copied first: the optimizer changes the originals while the copies are saved.
            copies = {name: _copy(t) for name, t in tensors.items()}
            self._pending = self._thread.submit(self._write, step, copies, dict(state))

    def wait(self) -> None:
        """Wait until the pending checkpoint is written; raises the error where that failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for the pending checkpoint, whether it fails or not, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        name = _name(step)
        partial, first = self.folder / f".{name}.partial", distributed.rank() == 0
        try:
            if first:
                self.folder.mkdir(parents=True, exist_ok=True)
                for unfinished in self.folder.glob(".step_*.partial"):  # of a run that was killed
                    remove(unfinished)
                partial.mkdir()
            distributed.wait(self._group)
            distributed_checkpoint.save(
                dict(tensors),
                storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
                process_group=self._group,
                no_dist=distributed.world() == 1,
            )
            if first:
                self._commit(partial, name, {**state, "step": step, "names": sorted(tensors)})
            distributed.wait(self._group)
        except BaseException as error:
            if first:
                shutil.rmtree(partial, ignore_errors=True)  # the first error is the one to report
            raise _with_advice(error, self.folder / name, _size(tensors)) from error

    def _commit(self, partial: Path, name: str, state: Mapping[str, Any]) -> None:
        files = sorted(partial.glob("*.safetensors"))
        for path in files:
            sync(path)
        write_json(partial / "state.json", {**state, "sha256": {p.name: sha256(p) for p in files}})
        # A folder of that name exists if a run was killed after the renaming and before `latest` was changed.
        remove(self.folder / name)
        rename(partial, self.folder / name)
        write_json(self.folder / LATEST, name)
        for old in self._complete()[MAX_KEPT:]:
            remove(old)

    def _complete(self) -> list[Path]:
        """Folders of checkpoints from the latest to the oldest. A folder after the latest was never committed."""
        latest = self._latest()
        paths = sorted(self.folder.glob("step_*"), reverse=True)
        return [path for path in paths if latest is not None and path.name <= latest]

    def _latest(self) -> str | None:
        path = self.folder / LATEST
        return str(json.loads(path.read_text())) if path.exists() else None

    def find(self) -> Stored | None:
        """The latest checkpoint that isn't damaged, None where there is none. Raises ValueError if all are damaged."""
        problems = []
        for path in self._complete():
            try:
                state = json.loads((path / "state.json").read_text())
                for file, expected in state["sha256"].items():
                    if (actual := sha256(path / file)) != expected:
                        raise ValueError(f"{file}: expected SHA-256 {expected}, found {actual}")
                return Stored(path, state)
            except (OSError, ValueError) as error:
                problems.append(f"{path} is damaged: {error}")
        if problems:
            raise ValueError(f"{problems[0]}; remove {self.folder} to start the stage again")
        return None

    def drop(self, keep_latest: bool = False) -> None:
        """Remove all checkpoints, or all but the latest, once the stage is finished."""
        for old in self._complete()[1:] if keep_latest else [self.folder]:
            remove(old)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _copy(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory of a tensor's part in this process; a DTensor stays a DTensor."""
    if isinstance(tensor, DTensor):
        return DTensor.from_local(
            _copy(tensor.to_local()),
            distributed.cpu_mesh(tensor.device_mesh),
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    return tensor.detach().to("cpu", copy=True)
