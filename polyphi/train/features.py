"""What a frozen encoder makes of a crop or a clip is the same in every epoch: worked out once, then read from disk.

Stages that don't learn an encoder (`vision_4`, `speech_2`, the audio of `joint_1`) spend a part of each step on it. The
key is the content: SHA-256 of the pixels or log-mel frames that the encoder would see, in a folder named by the hash of
its weights. Each process appends to a file of its own and reads all that are there when it starts::

    features/3f0a.../0.bin      one tensor after the other
                     0.jsonl    {"key": "ab12...", "start": 0, "shape": [38, 144], "dtype": "float32"}

A killed process leaves at most a tensor that no line names, and a cut line, which ends what is read of that file.
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

from polyphi.batch import Clip
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipEncoder
from polyphi.model.slices import Slices, complete
from polyphi.runtime import distributed
from polyphi.train import checkpoint


class Features:
    """Tensors by key, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._found: dict[str, tuple[Path, int, list[int], torch.dtype]] = {}
        for index in sorted(self.folder.glob("*.jsonl")):
            self._read(index)
        name = f"{distributed.rank()}"
        self._data = (self.folder / f"{name}.bin").open("ab")
        self._index = (self.folder / f"{name}.jsonl").open("a")
        self._files: dict[Path, BinaryIO] = {}
        self.hits = self.misses = 0

    def _read(self, index: Path) -> None:
        data = index.with_suffix(".bin")
        whole = 0
        for line in index.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except (
                json.JSONDecodeError
            ):  # cut short: what comes after it starts on a line of its own again
                break
            dtype = getattr(torch, entry["dtype"])
            end = entry["start"] + dtype.itemsize * torch.Size(entry["shape"]).numel()
            if end > data.stat().st_size:
                break
            self._found[entry["key"]] = (data, entry["start"], entry["shape"], dtype)
            whole += len(line)
        if int(index.stem) == distributed.rank():
            with index.open("rb+") as file:
                file.truncate(whole)

    def of(
        self, keys: Sequence[str], make: Callable[[list[int]], list[Tensor]]
    ) -> list[Float[Tensor, "..."]]:
        """The tensor of every key; `make` gives those of the numbers that are missing."""
        missing = list(dict.fromkeys(i for i, key in enumerate(keys) if key not in self._found))
        first = {keys[i]: i for i in reversed(missing)}
        made = dict(zip(first, make(list(first.values())), strict=True)) if first else {}
        for key, tensor in made.items():
            self._write(key, tensor)
        self.hits, self.misses = self.hits + len(keys) - len(made), self.misses + len(made)
        return [made[key] if key in made else self._load(key) for key in keys]

    def _write(self, key: str, tensor: Tensor) -> None:
        start = self._data.seek(0, 2)
        flat = tensor.detach().cpu().contiguous()
        self._data.write(flat.view(torch.uint8).numpy().tobytes())
        self._data.flush()
        shape, dtype = list(flat.shape), str(flat.dtype).removeprefix("torch.")
        entry = {"key": key, "start": start, "shape": shape, "dtype": dtype}
        self._index.write(json.dumps(entry) + "\n")
        self._index.flush()
        self._found[key] = (self.folder / f"{distributed.rank()}.bin", start, shape, flat.dtype)

    def _load(self, key: str) -> Tensor:
        path, start, shape, dtype = self._found[key]
        if path not in self._files:
            self._files[path] = path.open("rb")
        self._files[path].seek(start)
        data = bytearray(self._files[path].read(dtype.itemsize * torch.Size(shape).numel()))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def close(self) -> None:
        """No more is written or read."""
        self._data.close()
        self._index.close()
        for file in self._files.values():
            file.close()


@contextmanager
def kept_features(model: PhiModel, folder: Path | None, precision: str) -> Iterator[None]:
    """Meanwhile encoders of which nothing learns answer from `folder` where it knows (None: they always work)."""
    encoders: list[tuple[SiglipEncoder | ConformerEncoder, Callable[..., Tensor]]] = []
    if model.vision is not None:
        encoders.append((model.vision.encoder, _of_crops))
    if model.audio is not None:
        encoders.append((model.audio.encoder, _of_clips))
    with ExitStack() as stack:
        for encoder, answer in encoders:
            if folder is None or any(p.requires_grad for p in encoder.parameters()):
                continue
            weights = checkpoint.digests(encoder.state_dict().items())
            name = hashlib.sha256(json.dumps([weights, precision]).encode()).hexdigest()[:16]
            features = Features(folder / name)
            stack.callback(features.close)
            # Everything that runs an encoder runs its slices, `forward` too.
            encoder.slices = partial(  # type: ignore[method-assign]
                _cached, features, answer, encoder.slices
            )
            stack.callback(delattr, encoder, "slices")  # the class's own shows again
        yield


def _cached(
    features: Features,
    answer: Callable[..., Tensor],
    slices: Callable[..., Slices[Tensor]],
    *inputs: Any,
) -> Slices[Tensor]:
    """An encoder's slices, all at once: outputs that are stored, and new ones of what isn't."""
    yield from ()
    return answer(features, lambda *missing: complete(slices(*missing)), *inputs)


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
    def make(missing: list[int]) -> list[Tensor]:
        with torch.no_grad():
            return list(forward(crops[missing], masks[missing]))

    keys = [_key(*pair) for pair in zip(crops, masks, strict=True)]
    return torch.stack([t.to(crops.device) for t in features.of(keys, make)])


def _of_clips(
    features: Features,
    forward: Callable[..., Tensor],
    mels: Float[Tensor, "F M"],
    clips: Sequence[Clip],
) -> Float[Tensor, "A D"]:
    parts = mels.split([clip.frames for clip in clips])

    def make(missing: list[int]) -> list[Tensor]:
        chosen = [clips[i] for i in missing]
        with torch.no_grad():
            made = forward(torch.cat([parts[i] for i in missing]), chosen)
        return list(made.split([clip.tokens for clip in chosen]))

    keys = [_key(part) for part in parts]
    return torch.cat([t.to(mels.device) for t in features.of(keys, make)])
