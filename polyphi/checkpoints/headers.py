"""What the files of a checkpoint hold, by their headers: layout, configuration, and the place of each tensor.

>>> checkpoint = open_checkpoint(Path("path/to/folder"))
>>> checkpoint.layout, checkpoint.config.decoder.hidden_size

The weights themselves are read by read.py.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyphi.checkpoints import adapter_config as peft
from polyphi.checkpoints import config as config_json
from polyphi.checkpoints import variants
from polyphi.checkpoints.adapter_config import describe, object_at
from polyphi.checkpoints.files import (
    ACCURACY,
    MODEL_TYPES,
    UNSUPPORTED,
    check_headers,
    inside,
    read_json,
    weight_files,
)
from polyphi.checkpoints.names import (
    AUDIO,
    BYTES,
    FORMAT,
    IMAGE,
    METHOD,
    PEFT_PREFIX,
    QUANTIZED,
    TYPES,
    own_layout,
    public_names,
)
from polyphi.model.config import ModelConfig
from polyphi.model.lora import is_adapter_name
from polyphi.quantization import quantize
from polyphi.runtime.files import RECORD
from polyphi.runtime.rust import panics_are_errors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
LOOKUP = f"{quantize.EMBEDDING}.{quantize.TABLE}"
"""Stored name of the embeddings beside a quantized head."""
MODALITY = "*-modality/modality.json"
"""The file in a folder of a user's modality (modalities.py)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, of which only the header is read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model. `layout` is one of the public ones or QUANTIZED, `stored` has all tensors by name,
    and `notes` a line for each difference from a published checkpoint that was accepted."""

    folder: Path
    layout: str
    config: ModelConfig
    stored: dict[str, StoredTensor]
    notes: tuple[str, ...]


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint, from config.json and tensor shapes."""
    return open_checkpoint(folder).config


def read_layout(folder: Path) -> str:
    """The layout of a checkpoint: a public one, or QUANTIZED."""
    return open_checkpoint(folder).layout


def read_quantization(folder: Path) -> str | None:
    """The scheme (`quantize.py`) of a quantized checkpoint, None for others. Raises ValueError for weights quantized by
    other software, and for a newer version of our layout."""
    settings = read_json(folder / "config.json").get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != METHOD:
        raise ValueError(
            f"{folder}/config.json has the quantization method {describe(method)}; expected unquantized weights, or "
            "those of `polyphi export --quant`"
        )
    values = settings if isinstance(settings, dict) else {}
    scheme, version = values.get("kind"), values.get("format")
    if version in range(1, FORMAT):
        raise ValueError(
            f"{folder} has weights in version {version} of the quantized layout, which an older polyphi rounded with "
            f"larger errors; this one reads version {FORMAT}: export the unquantized checkpoint again, with --quant "
            f"{scheme}"
        )
    if version != FORMAT or scheme not in quantize.STORED:
        raise ValueError(
            f"{folder} has weights of the scheme {describe(scheme)} in version {describe(version)} of the "
            f"quantized layout; this version of polyphi reads {', '.join(quantize.STORED)} in version "
            f"{FORMAT}: install a newer one, or export the checkpoint again"
        )
    return str(scheme)


def stored_bytes(folder: Path, table: bool = True) -> int:
    """Bytes of all tensors of a checkpoint; `table`: with the embeddings that lie beside a quantized head."""
    dtypes = TYPES | BYTES
    tensors = open_checkpoint(folder).stored
    if not table:
        tensors.pop(LOOKUP, None)
    return sum(
        math.prod(t.shape) * dtypes.get(t.type, torch.float32).itemsize for t in tensors.values()
    )


def stored_types(folder: Path) -> Counter[torch.dtype]:
    """Number of parameters of a checkpoint by stored dtype; only headers are read."""
    counts: Counter[torch.dtype] = Counter()
    for name, tensor in open_checkpoint(folder).stored.items():
        if name != "lm_head.weight":  # often a copy of the embedding
            dtype = TYPES.get(tensor.type, torch.float32)  # loading raises for other dtypes
            counts[dtype] += math.prod(tensor.shape)
    return counts


def files_beside(folder: Path, layout: str) -> list[Path]:
    """What to copy when a checkpoint is written again in a `layout`: its tokenizer, the folders of users' modalities,
    for an equal layout also the settings of its processor and templates, and of a quantized one its accuracy. Raises
    ValueError for a link out of the folder."""
    stored_layout = read_layout(folder)
    further = [path.parent for path in sorted(folder.glob(MODALITY))]
    inside(folder, (path for one in further for path in one.iterdir()))
    if stored_layout == QUANTIZED and layout == own_layout(read_config(folder)):
        further += inside(folder, [folder / ACCURACY])  # the weights are the same
    if layout not in (stored_layout, QUANTIZED):  # quantized ones have the same settings
        return [*inside(folder, (folder / name for name in TOKENIZER_FILES)), *further]
    ours = {"config.json", "generation_config.json", "model.safetensors.index.json", RECORD}
    ours.add(ACCURACY)
    texts = (p for p in sorted(folder.iterdir()) if p.suffix in {".json", ".txt", ".jinja"})
    return [*inside(folder, (p for p in texts if p.name not in ours)), *further]


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, whose weights are not read. Raises ValueError for a missing or invalid config.json,
    damaged files and pickles."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; expected a checkpoint folder with config.json and safetensors"
        )
    raw_config = read_json(folder / "config.json")
    stored = _contents(weight_files(folder))
    layout = config_layout = _layout(raw_config, stored)
    notes: list[str] = []
    preprocessor = read_json(folder / "preprocessor_config.json")
    if layout == "original":
        try:
            raw_config, stored = variants.accept(raw_config, stored, notes)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        if raw_config["embd_layer"].get("image_embd_layer") and not (
            preprocessor or raw_config["polyphi"]
        ):
            notes.append(
                "there is no preprocessor_config.json: images have as many crops as in the published one"
            )
    adapters = {}
    if read_quantization(folder):
        layout = QUANTIZED
        quantization = raw_config["quantization_config"]
        for name, values in object_at(quantization, "adapters", "quantization_config.").items():
            adapters[name] = peft.parse_peft(values, f"{folder}/config.json, adapter {name}")
    elif layout != "original":
        for adapter_folder in sorted(p for p in folder.glob("*-lora") if p.is_dir()):
            values = read_json(adapter_folder / "adapter_config.json")
            adapters[adapter_folder.name.removesuffix("-lora")] = peft.parse_peft(
                values, f"{adapter_folder}/adapter_config.json"
            )
            inside = _contents([adapter_folder / "adapter_model.safetensors"])
            stored |= {
                f"{adapter_folder.name}/{name.removeprefix(PEFT_PREFIX)}": s
                for name, s in inside.items()
            }

    def shape(ours: str) -> tuple[int, ...] | None:
        names, unit_axes = public_names(ours, layout, adapted=bool(adapters))
        if any(name not in stored or not stored[name].shape for name in names):
            return None
        rows = sum(stored[name].shape[0] for name in names)
        shape = stored[names[0]].shape
        return shape[unit_axes:] if len(names) == 1 else (rows, *shape[1:])

    try:
        if layout == "original":
            adapters = peft.parse_nested_adapters(raw_config)
        config = config_json.parse(
            raw_config,
            config_layout,
            generation=read_json(folder / "generation_config.json"),
            preprocessor=preprocessor,
            adapters=adapters,
            shape=shape,
        )
        if wrong := [name for name in adapters if not is_adapter_name(name)]:
            raise ValueError(
                f"expected an adapter's name of letters, digits, _ and -, found {describe(wrong[0])}"
            )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return Checkpoint(folder, layout, config, stored, tuple(notes))


def open_tensors(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        with panics_are_errors(f"{file} is not a complete safetensors file"):
            return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({error}); copy it again"
        ) from error


def _contents(files: Sequence[Path]) -> dict[str, StoredTensor]:
    check_headers(files)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                if key in stored:
                    raise ValueError(f"tensor {key} is in two files: {stored[key].file} and {file}")
                header = tensors.get_slice(key)
                stored[key] = StoredTensor(file, key, tuple(header.get_shape()), header.get_dtype())
    return stored


def _layout(raw_config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> str:
    model_type = raw_config.get("model_type")
    if model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if model_type is not None:
        reason = f", which has {UNSUPPORTED[model_type]}" if model_type in UNSUPPORTED else ""
        raise ValueError(
            f"expected a model_type of {', '.join(MODEL_TYPES)} in config.json, found {model_type!r}{reason}"
        )
    if any(".base_layer." in name or name.endswith("glb_GN") for name in stored):
        return "original"
    return (
        "native"
        if any(name.startswith(IMAGE) or name.startswith(AUDIO) for name in stored)
        else "mini"
    )


def read_tensor(stored: StoredTensor) -> Tensor:
    """The values of a tensor, mapped by itself."""
    with open_tensors(stored.file) as tensors:
        return tensors.get_tensor(stored.key)
