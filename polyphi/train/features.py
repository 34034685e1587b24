"""Cache on disk of the outputs of frozen encoders, which are the same in every epoch.

Stages with a frozen encoder (`vision_4`, `speech_2`, the audio of `joint_1`) spend a part of each step on it. The key
is the content: SHA-256 of what the encoder reads of an item, in a folder named by the hash of its weights. Each process
appends to one file and reads all files that exist when it starts::

    features/3f0a.../0.bin      one tensor after the other
                     0.jsonl    {"key": "ab12...", "start": 0, "shape": [38, 144], "dtype": "float32", "crc32": 712}

A killed process leaves at most a tensor without a line, and an incomplete line, which is skipped. A tensor whose bytes
are lost or damaged is computed again.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.model.multimodal import PhiModel
from polyphi.prepared.multimodal import PreparedTower
from polyphi.prepared.prepare import prepare
from polyphi.runtime import distributed
from polyphi.runtime.files import append
from polyphi.runtime.steps import Steps, result_of
from polyphi.train import checkpoint
from polyphi.types.inputs.encoder import Inputs


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is stored: its file, the offset of its bytes, their CRC-32, its shape and dtype."""

    file: Path
    start: int
    crc32: int
    shape: list[int]
    dtype: torch.dtype

    def read(self) -> Tensor | None:
        """The tensor; None where the file has other bytes, for example because they were lost with the power."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = bytearray(file.read(self.dtype.itemsize * torch.Size(self.shape).numel()))
        if zlib.crc32(data) != self.crc32:
            return None
        return torch.frombuffer(data, dtype=self.dtype).view(self.shape)


class Features:
    """Tensors by key, stored on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, _Entry] = {}
        for index in sorted(self.folder.glob("*.jsonl")):
            for line in index.read_bytes().splitlines():
                with suppress(
                    ValueError, KeyError
                ):  # an incomplete line, or one of an earlier version
                    self._add(index.with_suffix(".bin"), json.loads(line))
        self.hits = self.misses = 0

    def _add(self, file: Path, line: dict[str, Any]) -> None:
        self._entries[line["key"]] = _Entry(
            file, line["start"], line["crc32"], line["shape"], getattr(torch, line["dtype"])
        )

    def of(
        self, keys: Sequence[str], compute: Callable[[list[int]], list[Tensor]]
    ) -> list[Float[Tensor, "..."]]:
        """The tensor of every key; `compute` returns those of the given indices, which are missing."""
        stored = {
            key: tensor
            for key in dict.fromkeys(keys)
            if key in self._entries and (tensor := self._entries[key].read()) is not None
        }
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in stored}
        missing = sorted(first.values())
        computed = (
            dict(zip((keys[i] for i in missing), compute(missing), strict=True)) if missing else {}
        )
        for key, tensor in computed.items():
            self._write(key, tensor)
        self.hits, self.misses = self.hits + len(keys) - len(computed), self.misses + len(computed)
        return [computed[key] if key in computed else stored[key] for key in keys]

    def _write(self, key: str, tensor: Tensor) -> None:
        flat = tensor.detach().cpu().contiguous()
        content = flat.view(torch.uint8).numpy().tobytes()
        data = self.folder / f"{distributed.rank()}.bin"
        line = {
            "key": key,
            "start": append(data, content, durable=False),
            "shape": list(flat.shape),
            "dtype": str(flat.dtype).removeprefix("torch."),
            "crc32": zlib.crc32(content),
        }
        append(data.with_suffix(".jsonl"), json.dumps(line).encode() + b"\n", durable=False)
        self._add(data, line)


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
