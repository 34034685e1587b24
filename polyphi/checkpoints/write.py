"""Writing checkpoints in one of the public layouts, or quantized in our layout; bit-exact and atomic.

>>> save_checkpoint(model, "elsewhere", layout="original")
>>> save_checkpoint(model, "elsewhere", quant="int4")
"""

import filecmp
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from polyphi.checkpoints import adapter_config as peft
from polyphi.checkpoints import config as config_json
from polyphi.checkpoints import modalities
from polyphi.checkpoints.names import (
    BYTES,
    FORMAT,
    METHOD,
    PEFT_PREFIX,
    PUBLISHED_ADAPTERS,
    QUANTIZED,
    TYPES,
    NamedTensor,
    as_stored,
    empty_model,
    tensor_names,
)
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.quantization.integer_weights import Pieces
from polyphi.runtime.files import foreign_files, record_files, whole_folder
from polyphi.types.batch import Batch

ALIGNED = 64
"""Alignment in bytes of quantized tensors in their file, so that kernels can read the mapped file."""
SHARD_BYTES = 2_000_000_000
_DTYPE_NAMES = {dtype: name for name, dtype in (TYPES | BYTES).items()}


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
    """Write a checkpoint in one of the layouts; `mini` and `llama` store the language model alone. With `quant`, a
    scheme of `quantize.py`, the weights are quantized while they are written, in our layout, and the model stays
    unquantized; 4 bits are rounded by calibration on the rows of `calibration`, which should resemble the later inputs.
    A quantized model is written unchanged. `files` (such as a tokenizer's) are copied to the folder.

    Everything is written to a temporary folder that replaces `folder` at the end, so a full disk or a kill leaves
    either the old checkpoint or the new one. Raises ValueError where `folder` has files that weren't written by this
    function or were changed since, for adapters that the original layout doesn't support, for a model with another
    quantization and for an unknown `quant`.
    """
    if calibration and quant is None:
        raise ValueError(
            "calibration rows are for a quantized checkpoint; set quant, for example quant='int4'"
        )
    state: dict[str, Tensor | Pieces] = dict(model.state_dict())
    tensor: Callable[[str], Tensor | Pieces] = state.__getitem__
    if model.quant is not None:
        if model.quant not in quantize.STORED or quant != model.quant:
            raise ValueError(
                f"a model quantized to {model.quant} can't be saved with quant={quant!r}: load it without quant, or "
                f"set quant={model.quant!r}"
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
    """Write a checkpoint like `save_checkpoint`, one tensor at a time: `tensor(our name)` returns each, or its pieces
    where it is quantized; only one shard is in memory."""
    if quant is not None and quant not in quantize.STORED:
        raise ValueError(
            f"expected quant to be one of {', '.join(quantize.STORED)}; found {quant!r}"
        )
    if quant is not None and layout == "original":
        raise ValueError(
            "quantized weights can't be stored in the original layout; omit the layout, or use mini for the language "
            "model alone"
        )
    if quant is not None:
        dtype = dtype or torch.bfloat16  # as in `load_checkpoint`
    target = Path(folder)
    _foreign_names(target, files)  # raises now, rather than after hours
    whole = config
    others = sorted(set(config.without_further().adapters) - set(PUBLISHED_ADAPTERS))
    if layout == "original" and others:
        raise ValueError(
            f"the original layout supports the adapters {' and '.join(PUBLISHED_ADAPTERS)}, this model also has "
            f"{', '.join(others)}; merge it into the base (--merge {others[0]}), or use the native layout"
        )
    config = as_stored(config, layout)
    entries = tensor_names(config, layout if quant is None else QUANTIZED)
    adapter_files: dict[str, dict[str, NamedTensor]] = {}
    for name in [name for name in entries if "/" in name]:
        adapter_folder, _, suffix = name.partition("/")
        adapter_files.setdefault(adapter_folder, {})[PEFT_PREFIX + suffix] = entries.pop(name)

    # Read twice; `tensor` may return each only once.
    norm = {modalities.NORM: tensor(modalities.NORM)} if whole.further else {}

    def floats(ours: str) -> Tensor:
        value = norm[ours] if ours in norm else tensor(ours)
        assert isinstance(value, Tensor), f"pieces of {ours}, which isn't quantized"
        return value

    last: dict[str, Tensor] = {}
    """The tensor that was read last: those of the layout that have its rows follow each other."""

    def converted(entry: NamedTensor) -> Tensor:
        is_copy = entry.rows is None and entry.ours in last
        if entry.ours not in last:
            last.clear()
            last[entry.ours] = floats(entry.ours).detach()
        value = last[entry.ours] if entry.rows is None else last[entry.ours][slice(*entry.rows)]
        value = value.reshape(entry.shape).to("cpu", dtype).contiguous()
        return value.clone() if is_copy else value  # safetensors refuses memory of two tensors

    def output_tensors() -> Iterator[tuple[str, Tensor]]:
        parts = {p.name: p for p in quantize.parts(empty_model(config), quant)} if quant else {}
        for name, entry in entries.items():
            if part := parts.get(entry.ours):
                pieces = tensor(entry.ours)
                if isinstance(pieces, Tensor):
                    pieces = part.pieces(pieces.detach().to("cpu", dtype).flatten(1))
                for end, piece in pieces.items():
                    unrounded = end == quantize.TABLE
                    yield f"{name}.{end}", piece.detach().to("cpu", dtype) if unrounded else piece
            else:
                yield name, converted(entry)

    with whole_folder(target) as work:
        stored = _write_shards(output_tensors(), work, max_shard_bytes, aligned=quant is not None)
        config_values = {**config_json.write(config, layout), "torch_dtype": stored}
        if quant is not None:
            adapters = {name: peft.write_peft(a) for name, a in config.adapters.items()}
            config_values |= {
                "torch_dtype": str(dtype).removeprefix("torch."),
                "quantization_config": {
                    "quant_method": METHOD,
                    "format": FORMAT,
                    "kind": quant,
                    "adapters": adapters,
                },
            }
        _write_json(work / "config.json", config_values)
        tokens = {
            "bos_token_id": config.decoder.bos_token_id,
            "eos_token_id": list(config.decoder.eos_token_ids),
            "pad_token_id": config.decoder.pad_token_id,
        }
        _write_json(work / "generation_config.json", tokens)
        for adapter_folder, members in adapter_files.items():
            (work / adapter_folder).mkdir()
            _save_file(
                {name: converted(e) for name, e in members.items()},
                work / adapter_folder / "adapter_model.safetensors",
            )
            adapter = config.adapters[adapter_folder.removesuffix("-lora")]
            _write_json(work / adapter_folder / "adapter_config.json", peft.write_peft(adapter))
        for name in whole.further:
            modalities.write(whole, name, floats, work / f"{name}{modalities.SUFFIX}", dtype)
        for file in files:
            copy = work / Path(file).name
            if not Path(file).is_dir():
                shutil.copy(file, copy)
            elif not copy.exists():  # a modality whose code isn't loaded
                shutil.copytree(file, copy)
        if layout == "native" and quant is None and config.vision and config.audio:
            _write_processor(config, work)
        record_files(work, except_for=_foreign_names(target, files))


def _foreign_names(folder: Path, files: Sequence[str | Path]) -> list[str]:
    """Names of files in an existing folder that aren't of an earlier checkpoint of ours, but that `files` replaces by
    equal ones, such as an edited model card. Raises ValueError where other files would be deleted."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder to write, found the file {folder}")
    foreign = foreign_files(folder) if folder.is_dir() else []
    copies = {Path(file).name: Path(file) for file in files}
    lost = [n for n in foreign if n not in copies or not _is_equal(folder / n, copies[n])]
    if lost:
        names = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise ValueError(
            f"{folder} has files that polyphi didn't write or that were changed since: {names}; a checkpoint written "
            "there would delete them: use a new or empty folder, or move them away"
        )
    return foreign


def _is_equal(a: Path, b: Path) -> bool:
    return not a.is_symlink() and a.is_file() and filecmp.cmp(a, b, shallow=False)


def _write_processor(config: ModelConfig, folder: Path) -> None:
    """Write what transformers' processor reads: its settings, and the names of the placeholders in the tokenizer's."""
    settings = folder / "preprocessor_config.json"
    if not settings.exists():
        _write_json(settings, config_json.write_preprocessor(config))
    file = folder / "tokenizer_config.json"
    if not file.exists():
        return
    values = json.loads(file.read_text(encoding="utf-8"))
    names = {id: token["content"] for id, token in values.get("added_tokens_decoder", {}).items()}
    assert config.vision and config.audio
    ids = {"image_token": config.vision.image_token_id, "audio_token": config.audio.audio_token_id}
    tokens = {key: names[str(id)] for key, id in ids.items() if str(id) in names}
    if tokens and not isinstance(values.get("extra_special_tokens"), dict):
        _write_json(file, {**values, "extra_special_tokens": tokens})


def _write_shards(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, limit: int, *, aligned: bool
) -> str:
    """Write shards of at most `limit` bytes in order; returns the name of the first tensor's dtype."""
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
    path.touch()  # with the permissions of new files here, which the library doesn't give
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers requires the metadata
    except SafetensorError as error:  # usually a full disk
        raise OSError(f"could not write {path}: {error}") from error
    path.chmod(mode)


def _save_aligned(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file in which tensors with a multiple of ALIGNED bytes come first, and are aligned. (The
    library sorts by dtype and doesn't guarantee alignment.)"""
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNED != 0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        tensor, end = tensors[name], start + tensors[name].nbytes
        dtype_name = _DTYPE_NAMES[tensor.dtype]
        header[name] = {
            "dtype": dtype_name,
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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
