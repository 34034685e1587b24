"""Writing checkpoints in one of the three public layouts, or quantised in one of our own; bit-exact, whole or absent.

>>> save_checkpoint(model, "elsewhere", layout="original")
>>> save_checkpoint(model, "elsewhere", quant="int4")
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from polyphi.batch import Batch
from polyphi.checkpoints import adapters as peft
from polyphi.checkpoints import config as config_json
from polyphi.checkpoints.names import (
    BYTES,
    FORMAT,
    METHOD,
    PEFT_PREFIX,
    PUBLISHED_ADAPTERS,
    QUANTISED,
    TYPES,
    Entry,
    as_stored,
    empty_model,
    tensor_names,
)
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.quantization.fewbits import Pieces
from polyphi.runtime.files import whole_folder

ALIGNED = 64
"""Bytes at a multiple of which quantised tensors begin in their file, so that kernels read them where they lie."""
SHARD_BYTES = 2_000_000_000
_WRITTEN = {dtype: name for name, dtype in (TYPES | BYTES).items()}


def save_checkpoint(
    model: PhiModel,
    folder: str | Path,
    layout: str = "native",
    *,
    dtype: torch.dtype | None = None,
    quant: str | None = None,
    calibration: Sequence[Batch] = (),
    max_shard_bytes: int = SHARD_BYTES,
    files: Sequence[str | Path] = (),
) -> None:
    """Writes a checkpoint in one of the three layouts; `mini` keeps the language model alone. With `quant`, a kind of
    `quantize.py`, all is quantised while it is written, in the layout of our own, and the model stays whole; 4 bits are
    rounded for `calibration`, rows like those that it will answer. A model that is quantised already is written as it
    is. `files` (a tokenizer's, say) are copied beside it.

    Everything is written into a temporary folder that takes the place of `folder` at the end, so a full disk or a kill
    leaves either the old checkpoint or the new one. Raises ValueError where `folder` holds something else, for
    adapters that the original layout has no room for, for a model quantised otherwise and for an unknown `quant`.
    """
    if calibration and quant is None:
        raise ValueError(
            "rows to calibrate with are for a quantised checkpoint; say which, int4 say"
        )
    state: dict[str, Tensor | Pieces] = dict(model.state_dict())
    tensor: Callable[[str], Tensor | Pieces] = state.__getitem__
    if model.quant is not None:
        if model.quant not in quantize.STORED or quant != model.quant:
            raise ValueError(
                f"a model quantised to {model.quant} can't be saved as anything else: load it without quant, or say "
                f"quant={model.quant!r}"
            )
        tensor = quantize.reader(model)
    elif quant is not None and calibration:
        state |= quantize.calibrated_pieces(model, quant, calibration)
    write_checkpoint(
        model.config,
        tensor,
        folder,
        layout,
        dtype=dtype,
        quant=quant,
        max_shard_bytes=max_shard_bytes,
        files=files,
    )


def write_checkpoint(
    config: ModelConfig,
    tensor: Callable[[str], Tensor | Pieces],
    folder: str | Path,
    layout: str,
    *,
    dtype: torch.dtype | None = None,
    quant: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    files: Sequence[str | Path] = (),
) -> None:
    """`save_checkpoint` for tensors that come one at a time: `tensor(our name)` returns each, or its pieces where it is
    quantised already; only one shard is in memory."""
    if quant is not None and quant not in quantize.STORED:
        raise ValueError(
            f"a checkpoint is quantised to one of {', '.join(quantize.STORED)}; found {quant!r}"
        )
    if quant is not None and layout == "original":
        raise ValueError(
            "quantised weights have a layout of their own; leave out the layout, or say mini for the language model "
            "alone"
        )
    if quant is not None:
        dtype = dtype or torch.bfloat16  # as `load_checkpoint` has it
    target = Path(folder)
    if (
        target.exists()
        and not (target / "config.json").is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise ValueError(
            f"{target} exists and is no checkpoint (it has no config.json); give a new or an empty folder"
        )
    siblings = sorted(set(config.adapters) - set(PUBLISHED_ADAPTERS))
    if layout == "original" and siblings:
        raise ValueError(
            f"the original layout holds the adapters {' and '.join(PUBLISHED_ADAPTERS)}, this model also has "
            f"{', '.join(siblings)}; merge it into the base (--merge {siblings[0]}), or use the native layout"
        )
    config = as_stored(config, layout)
    entries = tensor_names(config, layout if quant is None else QUANTISED)
    beside: dict[str, dict[str, Entry]] = {}
    for name in [name for name in entries if "/" in name]:
        place, _, rest = name.partition("/")
        beside.setdefault(place, {})[PEFT_PREFIX + rest] = entries.pop(name)

    def ready(entry: Entry) -> Tensor:
        found = tensor(entry.ours)
        assert isinstance(found, Tensor), f"pieces of {entry.ours}, which stays whole"
        return found.detach().reshape(entry.shape).to("cpu", dtype).contiguous()

    def written() -> Iterator[tuple[str, Tensor]]:
        parts = {p.name: p for p in quantize.parts(empty_model(config), quant)} if quant else {}
        for name, entry in entries.items():
            if entry.ours in parts:
                found = tensor(entry.ours)
                if isinstance(found, Tensor):
                    values = found.detach().to("cpu", dtype).flatten(1)
                    found = parts[entry.ours].form.pieces(values)
                pieces = found
                yield from ((f"{name}.{end}", piece) for end, piece in pieces.items())
            else:
                yield name, ready(entry)

    with whole_folder(target, shared=True) as work:
        stored = _write_shards(written(), work, max_shard_bytes, aligned=quant is not None)
        said = {**config_json.write(config, layout), "torch_dtype": stored}
        if quant is not None:
            adapters = {name: peft.write_peft(a) for name, a in config.adapters.items()}
            said |= {
                "torch_dtype": str(dtype).removeprefix("torch."),
                "quantization_config": {
                    "quant_method": METHOD,
                    "format": FORMAT,
                    "kind": quant,
                    "adapters": adapters,
                },
            }
        _write_json(work / "config.json", said)
        tokens = {
            "bos_token_id": config.decoder.bos_token_id,
            "eos_token_id": list(config.decoder.eos_token_ids),
            "pad_token_id": config.decoder.pad_token_id,
        }
        _write_json(work / "generation_config.json", tokens)
        for place, members in beside.items():
            (work / place).mkdir()
            _save_file(
                {name: ready(e) for name, e in members.items()},
                work / place / "adapter_model.safetensors",
            )
            adapter = config.adapters[place.removesuffix("-lora")]
            _write_json(work / place / "adapter_config.json", peft.write_peft(adapter))
        for file in files:
            shutil.copy(file, work / Path(file).name)


def _write_shards(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, limit: int, *, aligned: bool
) -> str:
    """Fills shards of at most `limit` bytes in order; returns the name of the first tensor's type."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    filled = total = 0
    stored = ""

    def flush() -> None:
        (_save_aligned if aligned else _save_file)(
            shard, folder / f"part-{len(shards)}.safetensors"
        )
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        stored = stored or str(tensor.dtype).removeprefix("torch.")
        if shard and filled + tensor.nbytes > limit:
            flush()
            filled = 0
        shard[name] = tensor
        filled += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return stored
    weight_map: dict[str, str] = {}
    for i, members in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(members, file)
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    return stored


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers insists on the metadata
    except SafetensorError as error:  # a full disk, mostly
        raise OSError(f"could not write {path}: {error}") from error
    path.chmod(0o666 & ~_umask())


def _save_aligned(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file in which whole multiples of ALIGNED bytes come first, and begin at one. (The library sorts by
    type, and has no such promise.)"""
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNED != 0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        tensor, end = tensors[name], start + tensors[name].nbytes
        kind = _WRITTEN[tensor.dtype]
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
