"""Cache on disk of the outputs of frozen encoders, which are the same in every epoch.

Stages with a frozen encoder (`vision_4`, `speech_2`, the audio of `joint_1`) spend a part of each step on it. The key
is the content: SHA-256 of the pixels or log-mel frames of the encoder's input, in a folder named by the hash of its
weights. Each process appends to one file and reads all files that exist when it starts::

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
from typing import Any, BinaryIO

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyphi.audio_input import AudioLayout
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.conformer import PreparedConformerEncoder
from polyphi.prepared.prepare import prepare
from polyphi.prepared.siglip import PreparedSiglipEncoder
from polyphi.runtime import distributed
from polyphi.steps import Steps, result_of
from polyphi.train import checkpoint


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


Cached = Callable[..., Tensor]
"""An encoder's outputs for its inputs, by `Features` and the encoder."""


@contextmanager
def cached_features(model: PhiModel, folder: Path | None, precision: str) -> Iterator[None]:
    """While active, frozen encoders return the outputs cached in `folder` and add missing ones; None: no cache."""
    encoders: list[tuple[PreparedSiglipEncoder | PreparedConformerEncoder, Cached]] = []
    for module in prepare(model).modules():
        if isinstance(module, PreparedSiglipEncoder):
            encoders.append((module, _of_crops))
        elif isinstance(module, PreparedConformerEncoder):
            encoders.append((module, _of_clips))
    with ExitStack() as stack:
        for encoder, cached in encoders:
            if folder is None or any(p.requires_grad for p in encoder.parameters()):
                continue
            weights = checkpoint.digests(encoder.state_dict().items())
            name = hashlib.sha256(json.dumps([weights, precision]).encode()).hexdigest()[:16]
            features = Features(folder / name)
            stack.callback(features.close)
            # Every use of an encoder, `forward` too, calls `slices`.
            encoder.slices = partial(  # type: ignore[method-assign]
                _cached_slices, features, cached, encoder.slices
            )
            stack.callback(delattr, encoder, "slices")  # restores the class's method
        yield


def _cached_slices(
    features: Features,
    cached: Callable[..., Tensor],
    slices: Callable[..., Steps[Tensor]],
    *inputs: Any,
) -> Steps[Tensor]:
    """An encoder's `slices` with the cache: all outputs at once, stored or newly computed."""
    yield from ()
    return cached(features, lambda *missing: result_of(slices(*missing)), *inputs)


def _key(*tensors: Tensor) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def _of_crops(
    features: Features,
    forward: Callable[..., Tensor],
    crops: Float[Tensor, "N 3 C C"],
    masks: Bool[Tensor, "N G G"],
) -> Float[Tensor, "N P D"]:
    def compute(missing: list[int]) -> list[Tensor]:
        with torch.no_grad():
            return list(forward(crops[missing], masks[missing]))

    keys = [_key(*pair) for pair in zip(crops, masks, strict=True)]
    return torch.stack([t.to(crops.device) for t in features.of(keys, compute)])


def _of_clips(
    features: Features,
    forward: Callable[..., Tensor],
    mels: Float[Tensor, "F M"],
    clips: Sequence[AudioLayout],
) -> Float[Tensor, "A D"]:
    parts = mels.split([clip.frames for clip in clips])

    def compute(missing: list[int]) -> list[Tensor]:
        chosen = [clips[i] for i in missing]
        with torch.no_grad():
            outputs = forward(torch.cat([parts[i] for i in missing]), chosen)
        return list(outputs.split([clip.tokens for clip in chosen]))

    keys = [_key(part) for part in parts]
    return torch.cat([t.to(mels.device) for t in features.of(keys, compute)])
