"""Cache on disk of the outputs of frozen encoders, which are the same in every epoch.

Stages with a frozen encoder (`vision_4`, `speech_2`, the audio of `joint_1`) spend a part of each step on it. The key
is the content: SHA-256 of what the encoder reads of an item, in a folder named by the hash of its weights. Each process
appends to one file and reads all files that exist when it starts::

    features/3f0a.../0.bin      one tensor after the other
                     0.jsonl    {"key": "ab12...", "start": 0, "shape": [38, 144], "dtype": "float32"}

A killed process leaves at most a tensor without a line, and an incomplete line, at which the reading of that file ends.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.model.multimodal import PhiModel
from polyphi.prepared.multimodal import PreparedTower
from polyphi.prepared.prepare import prepare
from polyphi.runtime import distributed
from polyphi.runtime.steps import Steps, result_of
from polyphi.train import checkpoint
from polyphi.types.inputs.encoder import Inputs


class Features:
    """Tensors by key, stored on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, tuple[Path, int, list[int], torch.dtype]] = {}
        for index in sorted(self.folder.glob("*.jsonl")):
            self._read(index)
        name = f"{distributed.rank()}"
        self._data = (self.folder / f"{name}.bin").open("ab")
        self._index = (self.folder / f"{name}.jsonl").open("a")
        self._files: dict[Path, BinaryIO] = {}
        self.hits = self.misses = 0

    def _read(self, index: Path) -> None:
        data = index.with_suffix(".bin")
        size = 0
        for line in index.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # an incomplete line
                break
            dtype = getattr(torch, entry["dtype"])
            end = entry["start"] + dtype.itemsize * torch.Size(entry["shape"]).numel()
            if end > data.stat().st_size:
                break
            self._entries[entry["key"]] = (data, entry["start"], entry["shape"], dtype)
            size += len(line)
        if int(index.stem) == distributed.rank():
            with index.open("rb+") as file:
                file.truncate(size)

    def of(
        self, keys: Sequence[str], compute: Callable[[list[int]], list[Tensor]]
    ) -> list[Float[Tensor, "..."]]:
        """The tensor of every key; `compute` returns those of the given indices, which are missing."""
        missing = list(dict.fromkeys(i for i, key in enumerate(keys) if key not in self._entries))
        first = {keys[i]: i for i in reversed(missing)}
        computed = dict(zip(first, compute(list(first.values())), strict=True)) if first else {}
        for key, tensor in computed.items():
            self._write(key, tensor)
        self.hits, self.misses = self.hits + len(keys) - len(computed), self.misses + len(computed)
        return [computed[key] if key in computed else self._load(key) for key in keys]

    def _write(self, key: str, tensor: Tensor) -> None:
        start = self._data.seek(0, 2)
        flat = tensor.detach().cpu().contiguous()
        self._data.write(flat.view(torch.uint8).numpy().tobytes())
        self._data.flush()
        shape, dtype = list(flat.shape), str(flat.dtype).removeprefix("torch.")
        entry = {"key": key, "start": start, "shape": shape, "dtype": dtype}
        self._index.write(json.dumps(entry) + "\n")
        self._index.flush()
        self._entries[key] = (self.folder / f"{distributed.rank()}.bin", start, shape, flat.dtype)

    def _load(self, key: str) -> Tensor:
        path, start, shape, dtype = self._entries[key]
        if path not in self._files:
            self._files[path] = path.open("rb")
        self._files[path].seek(start)
        data = bytearray(self._files[path].read(dtype.itemsize * torch.Size(shape).numel()))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def close(self) -> None:
        """Close all files."""
        self._data.close()
        self._index.close()
        for file in self._files.values():
            file.close()


@contextmanager
def cached_features(model: PhiModel, folder: Path | None, precision: str) -> Iterator[None]:
    """A context in which frozen encoders return the outputs cached in `folder` and add missing ones; None: no cache."""
    with ExitStack() as stack:
        for tower in prepare(model).towers.values():
            if folder is None or any(p.requires_grad for p in tower.encoder.parameters()):
                continue
            assert isinstance(tower, PreparedTower)
            weights = checkpoint.digests(tower.encoder.state_dict().items())
            name = hashlib.sha256(json.dumps([weights, precision]).encode()).hexdigest()[:16]
            features = Features(folder / name)
            stack.callback(features.close)
            # Every use of a tower calls `feature_slices`.
            tower.feature_slices = partial(  # type: ignore[method-assign]
                _cached_slices, features, tower.feature_slices
            )
            stack.callback(delattr, tower, "feature_slices")  # restores the class's method
        yield


def _cached_slices(
    features: Features, slices: Callable[[Inputs], Steps[Tensor]], inputs: Inputs
) -> Steps[Float[Tensor, "n ..."]]:
    """A tower's `feature_slices` with the cache: all features at once, stored or newly computed."""
    yield from ()
    items = list(inputs.split())

    def compute(missing: list[int]) -> list[Tensor]:
        chosen = [items[i] for i in missing]
        joined = type(inputs).join(chosen)
        with torch.no_grad():
            if joined.features is None:
                return [result_of(slices(item)) for item in chosen]
            return list(result_of(slices(joined)).split(joined.features))

    of_items = features.of([_key(*item.identity) for item in items], compute)
    return torch.cat(
        [t.to(item.identity[0].device) for t, item in zip(of_items, items, strict=True)]
    )


def _key(*tensors: Tensor) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().data)
    return hasher.hexdigest()
