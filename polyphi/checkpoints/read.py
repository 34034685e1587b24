"""Reading checkpoints in any of the three public layouts, or in the quantized one (docs/quantization.md).

# the layout is detected; the configuration is read from config.json and tensor shapes
>>> model = load_checkpoint("path/to/folder")

Only safetensors are read; they are mapped into memory and copied only for a cast or another device. Pickles are
refused, and the code that a checkpoint's `auto_map` names is never run.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyphi.checkpoints import adapters as peft
from polyphi.checkpoints import config as config_json
from polyphi.checkpoints import variants
from polyphi.checkpoints.adapters import describe, object_at
from polyphi.checkpoints.files import MODEL_TYPES, check_headers, inside, read_json, weight_files
from polyphi.checkpoints.names import (
    AUDIO,
    BYTES,
    FORMATS,
    IMAGE,
    METHOD,
    PEFT_PREFIX,
    QUANTIZED,
    TYPES,
    NamedTensor,
    empty_model,
    entries_of,
    in_pieces,
    public_name,
)
from polyphi.model.config import ModelConfig
from polyphi.model.lora import is_adapter_name
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.runtime.files import RECORD, restore
from polyphi.runtime.heap import give_back
from polyphi.runtime.rust import panics_are_errors
from polyphi.text.quantity import quantity

log = logging.getLogger(__name__)
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
NAMES_SHOWN = 20
"""Names listed per type of mismatch in an error; for the others only the number is given."""


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, of which only the header is read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    type: str


def load_checkpoint(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapters: bool = True,
    quant: str | None = None,
    apart: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> PhiModel:
    """The model in a folder (hub/location.py finds that of a hub id), in any of the three layouts. `dtype=None` keeps
    the stored dtypes; `adapters=False` omits the LoRAs; `quant` is a scheme of `quantize.py`, for inference. With
    `apart` every tensor is mapped by itself and unmapped when it is dropped, for callers that replace or write tensors
    one by one. `progress` is called with the share of the tensors that are loaded.

    On the CPU, without a cast, the parameters are the mapped file, so memory stays at the checkpoint's size; so are
    weights of a quantized checkpoint in the order of our kernels. Tensors that are quantized or reordered are read one
    at a time and don't stay mapped.
    Raises ValueError for an unknown `quant` or another one than that of a quantized checkpoint; a missing config.json,
    a damaged file, pickles; tensors that are missing, unexpected, or of a wrong shape or dtype, by name; an adapter
    (which may come from any source) with NaN or infinity.
    """
    restore(folder)
    notes: list[str] = []
    layout, config, stored = _open(folder, notes)
    for note in notes:
        log.warning("%s: %s", folder, note)
    if layout == QUANTIZED:
        scheme = read_quantization(folder)
        if quant not in (None, scheme):
            raise ValueError(
                f"{folder} is quantized to {scheme} and can't become {quant}: load it without quant, or load the "
                f"unquantized checkpoint with quant={quant!r}"
            )
        quant = scheme
    adapted = bool(config.adapters)
    if not adapters:
        config = replace(config, adapters={})
        stored = {
            name: s
            for name, s in stored.items()
            if not any(part in name for part in (".lora_A.", ".lora_B.", ".lora."))
        }
    model, target = empty_model(config), torch.device(device)
    expected = entries_of(model.state_dict(), layout, adapted=adapted)
    parts = {part.name: part for part in quantize.parts(model, quant)} if quant else {}
    if layout == QUANTIZED:
        expected = in_pieces(expected, parts)
        if LOOKUP in stored and parts[quantize.EMBEDDING].has_table:
            expected[LOOKUP] = NamedTensor(quantize.EMBEDDING, parts[quantize.EMBEDDING].shape)
    stored = _without_tied_head(stored, expected)
    _check(expected, stored, folder, layout)

    names_of: dict[str, list[str]] = {}
    for name, entry in expected.items():
        names_of.setdefault(entry.ours, []).append(name)

    def pieces(ours: str) -> dict[str, Tensor]:
        """The stored pieces of a tensor, by the last part of their names; each has its own mapping, which is
        released with it."""
        return {name.rpartition(".")[2]: _read(stored[name]) for name in names_of[ours]}

    for number, part in enumerate(parts.values()):
        progress(number / len(names_of))
        stored_pieces = pieces(part.name)
        if ".lora." in part.name:
            for end, tensor in stored_pieces.items():
                if tensor.is_floating_point():  # any bytes are valid packed weights
                    _check_finite(f"{part.name} ({end})", tensor)
        if layout == QUANTIZED:
            part.put(part.form.stored(stored_pieces, part.shape, target))
        else:
            (tensor,) = stored_pieces.values()
            part.put(part.form(tensor.to(device=target, dtype=dtype).flatten(1)))
        del stored_pieces
    if quant:
        give_back()
    state: dict[str, Tensor] = {}
    # The embeddings are mapped a second time, for the lookup: only rows that are read take memory.
    if quantize.EMBEDDING in parts and layout == QUANTIZED and LOOKUP not in stored:
        model.decoder.embed_tokens.register_parameter("weight", None)
        head = quantize.head_of(model)
        assert head is not None
        if head.table is None:
            packed = max(pieces(quantize.EMBEDDING).values(), key=lambda t: t.nbytes)
            head.table = packed.to(target)
    elif quantize.EMBEDDING in parts:
        end = quantize.TABLE if layout == QUANTIZED else "weight"
        table = pieces(quantize.EMBEDDING)[end]
        state[quantize.EMBEDDING] = table if target.type == "cpu" else table.to(target, dtype)
    by_file: dict[Path, list[str]] = {}
    for name, entry in expected.items():
        if entry.ours not in parts:
            by_file.setdefault(stored[name].file, []).append(name)
    for file, members in by_file.items():
        with _safe_open(file) as tensors:
            for name in members:
                entry = expected[name]
                # The embedding may be in both.
                progress(min(1.0, (len(parts) + len(state)) / len(names_of)))
                reorder = quant is not None and not entry.ours.startswith("decoder.")
                own = apart or reorder
                tensor = _read(stored[name]) if own else tensors.get_tensor(stored[name].key)
                if ".lora." in entry.ours:
                    _check_finite(name, tensor)
                unit_axes = public_name(entry.ours, layout)[1]
                state[entry.ours] = tensor.reshape(entry.shape[unit_axes:]).to(
                    device=target, dtype=dtype
                )
    model.load_state_dict(state, strict=True, assign=True)
    state.clear()  # otherwise it would keep reordered tensors alive
    if quant:
        quantize.finish(model, quant)
        give_back()
    # A buffer that isn't in checkpoints would still be on the meta device; modules compute such tables when they run.
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers())), (
        "a tensor was left without values"
    )
    return model.eval()


def _read(stored: _Stored) -> Tensor:
    with _safe_open(stored.file) as tensors:
        return tensors.get_tensor(stored.key)


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint, from config.json and tensor shapes."""
    return _open(folder)[1]


def read_layout(folder: Path) -> str:
    """The layout of a checkpoint: one of the three, or QUANTIZED."""
    return _open(folder)[0]


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
    if version not in FORMATS or scheme not in quantize.STORED:
        raise ValueError(
            f"{folder} has weights of the scheme {describe(scheme)} in version {describe(version)} of the "
            f"quantized layout; this version of polyphi reads {', '.join(quantize.STORED)} in versions "
            f"{' and '.join(map(str, FORMATS))}: install a newer one, or export the checkpoint again"
        )
    return str(scheme)


def stored_bytes(folder: Path, table: bool = True) -> int:
    """Bytes of all tensors of a checkpoint; `table`: with the embeddings that lie beside a quantized head."""
    dtypes = TYPES | BYTES
    tensors = _open(folder)[2]
    if not table:
        tensors.pop(LOOKUP, None)
    return sum(
        math.prod(t.shape) * dtypes.get(t.type, torch.float32).itemsize for t in tensors.values()
    )


def stored_types(folder: Path) -> Counter[torch.dtype]:
    """Number of parameters of a checkpoint by stored dtype; only headers are read."""
    counts: Counter[torch.dtype] = Counter()
    for name, tensor in _open(folder)[2].items():
        if name != "lm_head.weight":  # a copy of the embedding
            dtype = TYPES.get(tensor.type, torch.float32)  # loading raises for other dtypes
            counts[dtype] += math.prod(tensor.shape)
    return counts


def files_beside(folder: Path, layout: str) -> list[Path]:
    """What to copy when a checkpoint is written again in a `layout`: its tokenizer, the folders of users' modalities,
    and for an equal layout also the settings of its processor and templates. Raises ValueError for a link out of the
    folder."""
    stored_layout = read_layout(folder)
    further = [path.parent for path in sorted(folder.glob(MODALITY))]
    inside(folder, (path for one in further for path in one.iterdir()))
    if layout not in (stored_layout, QUANTIZED):  # quantized ones have the same settings
        return [*inside(folder, (folder / name for name in TOKENIZER_FILES)), *further]
    ours = {"config.json", "generation_config.json", "model.safetensors.index.json", RECORD}
    texts = (p for p in sorted(folder.iterdir()) if p.suffix in {".json", ".txt", ".jinja"})
    return [*inside(folder, (p for p in texts if p.name not in ours)), *further]


def _open(
    folder: Path, notes: list[str] | None = None
) -> tuple[str, ModelConfig, dict[str, _Stored]]:
    """(layout, configuration, stored tensors by name) of a checkpoint folder. `notes` gets a line for each difference
    from a published checkpoint that was accepted."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; expected a checkpoint folder with config.json and safetensors"
        )
    raw_config = read_json(folder / "config.json")
    stored = _contents(weight_files(folder))
    layout = config_layout = _layout(raw_config, stored)
    preprocessor = read_json(folder / "preprocessor_config.json")
    if layout == "original":
        notes = [] if notes is None else notes
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
        name, unit_axes = public_name(ours, layout, adapted=bool(adapters))
        return stored[name].shape[unit_axes:] if name in stored else None

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
    return layout, config, stored


def _safe_open(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        with panics_are_errors(f"{file} is not a complete safetensors file"):
            return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a complete safetensors file ({error}); copy it again"
        ) from error


def _contents(files: Sequence[Path]) -> dict[str, _Stored]:
    check_headers(files)
    stored: dict[str, _Stored] = {}
    for file in files:
        with _safe_open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                if key in stored:
                    raise ValueError(f"tensor {key} is in two files: {stored[key].file} and {file}")
                header = tensors.get_slice(key)
                stored[key] = _Stored(file, key, tuple(header.get_shape()), header.get_dtype())
    return stored


def _layout(raw_config: Mapping[str, Any], stored: Mapping[str, _Stored]) -> str:
    model_type = raw_config.get("model_type")
    if model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if model_type is not None:
        raise ValueError(
            f"expected a model_type of {', '.join(MODEL_TYPES)} in config.json, found {model_type!r}"
        )
    if any(".base_layer." in name or name.endswith("glb_GN") for name in stored):
        return "original"
    return (
        "native"
        if any(name.startswith(IMAGE) or name.startswith(AUDIO) for name in stored)
        else "mini"
    )


def _without_tied_head(
    stored: dict[str, _Stored], expected: Mapping[str, NamedTensor]
) -> dict[str, _Stored]:
    """The stored tensors without a copy of the embedding as head. Raises ValueError where the two differ."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in stored or head in expected or embedding not in stored:
        return stored
    first, second = (
        _safe_open(stored[name].file).get_tensor(stored[name].key) for name in (head, embedding)
    )
    if not torch.equal(first, second):
        raise ValueError(
            f"{head} differs from {embedding}; the Phi-4 models tie them, an untied head is not supported"
        )
    return {name: s for name, s in stored.items() if name != head}


def _check(
    expected: Mapping[str, NamedTensor], stored: Mapping[str, _Stored], folder: Path, layout: str
) -> None:
    misshaped = [
        f"{name} expected {list(entry.shape)} found {list(stored[name].shape)}"
        for name, entry in expected.items()
        if name in stored and entry.shape != stored[name].shape
    ]
    faults = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected],
        "mis-shaped": misshaped,
        "of another type": [
            f"{name} expected {_dtype_text(entry.type)} found {stored[name].type}"
            for name, entry in expected.items()
            if name in stored and not _fits(entry.type, stored[name].type)
        ],
    }
    if not any(faults.values()):
        return
    parts = []
    for fault, names in faults.items():
        if names:
            more = f" ... and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            parts.append(f"{len(names)} {fault}: {', '.join(names[:NAMES_SHOWN])}{more}")
    raise ValueError(
        f"the tensors in {folder} don't match its config.json ({layout} layout, "
        f"{quantity(len(expected), 'tensor')} expected, "
        f"{len(stored)} found). {'; '.join(parts)}"
    )


def _fits(required: torch.dtype | None, stored: str) -> bool:
    if required is None:
        return stored in TYPES
    return (TYPES | BYTES).get(stored) == required


def _dtype_text(required: torch.dtype | None) -> str:
    return "a float" if required is None else str(required).removeprefix("torch.")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    low, high = tensor.aminmax()  # NaN is propagated
    if not bool((high.float() - low.float()).isfinite()):
        raise ValueError(f"expected finite values in the adapter, found NaN or infinity in {name}")
