"""Checkpoints: the three public layouts <-> our names, as one table of renames with a reason each.

- `mini`: Phi-4-mini as published, the language model alone (transformers' `Phi3ForCausalLM`); adapters of its own stand
  beside it, as in the native layout.
- `original`: Phi-4-multimodal as Microsoft publishes it (`Phi4MMForCausalLM`), adapters nested in the checkpoint.
- `native`: the same model as the transformers library stores it (`Phi4MultimodalForCausalLM`), adapters beside it as
  PEFT folders `vision-lora/` and `speech-lora/`, and any sibling as `NAME-lora/`.

# the layout is recognised; sizes come from config.json and the shapes
>>> model = load("path/to/folder")
>>> save(model, "elsewhere", layout="original")   # bit-exact, atomically

Quantised weights are stored in a layout of our own, which is recognised likewise (docs/engine.md):

>>> save(model, "elsewhere", quant="int4")

Only safetensors are read, mapped into memory and never copied unless a cast or a device asks for it. Pickles are
refused, and the code that a checkpoint's `auto_map` names is never run.
Source: names and shapes of the published checkpoints; transformers' own conversion script for the native names.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polyphi.batch import Batch
from polyphi.checkpoints import public_config
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.quantization.fewbits import Pieces, Quantised
from polyphi.runtime.heap import give_back

LAYOUTS = ("mini", "original", "native")
QUANTISED, METHOD, FORMAT = "quantised", "polyphi", 1
"""The layout of quantised checkpoints, and what their config.json says under `quantization_config`: who made them, and
the version of the layout."""
ALIGNED = 64
"""Bytes at a multiple of which quantised tensors begin in their file, so that kernels read them where they lie."""
SHARD_BYTES = 2_000_000_000
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
PUBLISHED_ADAPTERS = ("vision", "speech")
"""All that the original layout has room for."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
PEFT_PREFIX = "base_model.model."
"""What PEFT writes before every module name of an adapter file; read with and without it."""
NAMES_SHOWN = 20
"""Names listed per kind of mismatch in an error; a count stands for the rest."""


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename:
    """`<x>` stands for a piece between dots, or the end of one. A rule matches the front of a name and keeps the rest;
    the first that matches wins. `unit_axes` leading axes of length 1 precede the shape in both public layouts."""

    ours: str
    original: str
    native: str
    why: str
    unit_axes: int = 0


_IMAGE = "model.embed_tokens_extend.image_embed"
_AUDIO = "model.embed_tokens_extend.audio_embed"
_LINEAR = "decoder.layers.<n>.<block>.<linear>"
_PUBLIC_LINEAR = "model.layers.<n>.<block>.<linear>"
_BLOCK = "audio.encoder.blocks.<n>"
_PUBLIC_BLOCK = f"{_AUDIO}.encoder.encoders.<n>"


def _same(ours: str, public: str, why: str) -> Rename:
    return Rename(ours, public, public, why)


# fmt: off
RENAMES = (
    # The language model. `<adapter>-lora/` names the PEFT folder; `mini` uses the native column, which it equals.
    Rename(f"{_LINEAR}.lora.<adapter>.a",
           f"{_PUBLIC_LINEAR}.lora_A.<adapter>.weight", f"<adapter>-lora/{_PUBLIC_LINEAR}.lora_A.weight",
           "an adapter is one thing with two matrices, not an entry in two dictionaries"),
    Rename(f"{_LINEAR}.lora.<adapter>.b",
           f"{_PUBLIC_LINEAR}.lora_B.<adapter>.weight", f"<adapter>-lora/{_PUBLIC_LINEAR}.lora_B.weight", "likewise"),
    Rename(f"{_LINEAR}.weight", f"{_PUBLIC_LINEAR}.base_layer.weight", f"{_PUBLIC_LINEAR}.weight",
           "the base weight keeps its name whether or not an adapter sits on it"),
    _same("decoder", "model", "three parts side by side: decoder, vision, audio"),
    # Vision.
    _same("vision.encoder.patch_embedding", f"{_IMAGE}.img_processor.embeddings.patch_embedding",
          "no level for two members"),
    _same("vision.encoder.position_embedding", f"{_IMAGE}.img_processor.embeddings.position_embedding", "likewise"),
    _same("vision.encoder.layers", f"{_IMAGE}.img_processor.encoder.layers", "it is the encoder already"),
    _same("vision.encoder", f"{_IMAGE}.img_processor", "it encodes; pictures are processed in `processing`"),
    Rename("vision.projector.global_separator", f"{_IMAGE}.glb_GN", f"{_IMAGE}.global_img_feature_extensor",
           "it separates the crops from the global view", unit_axes=2),
    Rename("vision.projector.row_separator", f"{_IMAGE}.sub_GN", f"{_IMAGE}.sub_img_feature_extensor",
           "it ends every row of cells, the global view's too", unit_axes=3),
    Rename("vision.projector.up", f"{_IMAGE}.img_projection.0", f"{_IMAGE}.img_projection_up", "a name, not an index"),
    Rename("vision.projector.down", f"{_IMAGE}.img_projection.2", f"{_IMAGE}.img_projection_down", "likewise"),
    # Audio.
    _same("audio.encoder.global_mean", f"{_AUDIO}.encoder.encoder_embedding.global_mean", "no level for two buffers"),
    _same("audio.encoder.global_invstd", f"{_AUDIO}.encoder.encoder_embedding.global_invstd", "likewise"),
    _same("audio.encoder.subsampling", f"{_AUDIO}.encoder.embed", "it shortens time eightfold; nothing is embedded"),
    _same("audio.encoder.relative_attention_bias", f"{_AUDIO}.encoder.relative_attention_bias_layer.bias_values",
          "one table needs one name"),
    Rename(f"{_BLOCK}.feed_forward_<side>.value_gate_proj",
           f"{_PUBLIC_BLOCK}.feed_forward_<side>.net.0.linear", f"{_PUBLIC_BLOCK}.feed_forward_<side>.gate_up_proj",
           "the value comes first here, the gate second: `gate_up` promises the opposite"),
    Rename(f"{_BLOCK}.feed_forward_<side>.down_proj",
           f"{_PUBLIC_BLOCK}.feed_forward_<side>.net.2", f"{_PUBLIC_BLOCK}.feed_forward_<side>.down_proj",
           "a name, not an index"),
    *(Rename(f"{_BLOCK}.self_attn.{ours}", f"{_PUBLIC_BLOCK}.self_attn.{original}", f"{_PUBLIC_BLOCK}.self_attn.{ours}",
             "the decoder's words")
      for ours, original in zip(("q_proj", "k_proj", "v_proj", "o_proj"),
                                ("linear_q", "linear_k", "linear_v", "linear_out"),
                                strict=True)),
    _same("audio.encoder.blocks", f"{_AUDIO}.encoder.encoders", "the encoder's blocks are no encoders"),
    Rename("audio.projector.speech.up", f"{_AUDIO}.audio_projection.speech.0", f"{_AUDIO}.up_proj_for_speech",
           "a name, not an index"),
    Rename("audio.projector.speech.down", f"{_AUDIO}.audio_projection.speech.2", f"{_AUDIO}.down_proj_for_speech",
           "likewise"),
    Rename("audio.projector.vision.up", f"{_AUDIO}.audio_projection.vision.0", f"{_AUDIO}.up_proj_for_vision_speech",
           "likewise; the branch of clips beside a picture"),
    Rename("audio.projector.vision.down",
           f"{_AUDIO}.audio_projection.vision.2", f"{_AUDIO}.down_proj_for_vision_speech", "likewise"),
)
# fmt: on


def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(r"<(\w+)>", r"(?P<\1>[^.]+)", ours.replace(".", r"\.")) + r"(?P<rest>(\..+)?)$"
    )


_PATTERNS = [(_pattern(r.ours), r) for r in RENAMES]


@dataclass(frozen=True)
class Entry:
    """Where a tensor lives with us, the shape that the layout gives it, and the type that it must have (None: any
    float)."""

    ours: str
    shape: tuple[int, ...]
    type: torch.dtype | None = None


def public_name(ours: str, layout: str, *, adapted: bool = True) -> tuple[str, int]:
    """The public name of one of our tensors, and how many leading axes of length 1 it has there. `adapted` says
    whether the checkpoint holds adapters: only then does the original layout say `.base_layer`."""
    if layout == QUANTISED:
        return ours, 0
    for pattern, rule in _PATTERNS:
        if match := pattern.match(ours):
            wrapped = layout == "original" and (
                adapted or not rule.original.endswith(".base_layer.weight")
            )
            public = rule.original if wrapped else rule.native
            return re.sub(r"<(\w+)>", lambda m: match[m[1]], public) + match["rest"], rule.unit_axes
    raise AssertionError(f"no rename covers {ours}")


def names(config: ModelConfig, layout: str = "original") -> dict[str, Entry]:
    """Every tensor of a checkpoint of these sizes: public name -> `Entry`. Adapter files of the native layout appear
    as `vision-lora/NAME`. The mini layout has the language model only, whatever else the configuration holds."""
    config = _as_stored(config, layout)
    return _entries(_empty(config).state_dict(), layout, adapted=bool(config.adapters))


def _as_stored(config: ModelConfig, layout: str) -> ModelConfig:
    """What of a model a layout holds: `mini` leaves out the towers, and then the adapters that were made for them."""
    if layout == "mini" and (config.vision or config.audio):
        return replace(config, vision=None, audio=None, adapters={})
    return config


def _empty(config: ModelConfig) -> PhiModel:
    """The modules with shapes and no memory."""
    with torch.device("meta"):
        return PhiModel(config)


def _entries(state: Mapping[str, Tensor], layout: str, *, adapted: bool) -> dict[str, Entry]:
    if layout not in (*LAYOUTS, QUANTISED):
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    entries = {}
    for ours, tensor in state.items():
        name, unit_axes = public_name(ours, layout, adapted=adapted)
        entries[name] = Entry(ours, (1,) * unit_axes + tuple(tensor.shape))
    return entries


def _in_pieces(
    entries: Mapping[str, Entry], parts: Mapping[str, quantize.Part]
) -> dict[str, Entry]:
    """Entries of a quantised checkpoint: a weight's pieces in its place, `NAME.q8` and `NAME.row` say."""
    found = {}
    for name, entry in entries.items():
        if entry.ours not in parts:
            found[name] = entry
            continue
        part = parts[entry.ours]
        for end, (kind, shape) in part.form.layout(part.shape).items():
            found[f"{name}.{end}"] = Entry(entry.ours, shape, kind)
    return found


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """One tensor in a file; nothing but its header has been read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    type: str


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapters: bool = True,
    quant: str | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> PhiModel:
    """A model from a folder, or from the hub by `owner/name`, in any of the three layouts. `dtype=None` keeps what is
    stored; `adapters=False` leaves the LoRAs out; `quant` is a kind of `quantize.py`, for inference. `progress` is
    called with the share of the tensors that are loaded.

    On the CPU, without a cast, the parameters are the mapped file itself, so memory stays at the checkpoint's size; so
    are weights of a quantised checkpoint in the order that our kernels read. What is quantised or laid out anew is read
    one tensor at a time, and nothing of it stays mapped.
    Raises ValueError, in one message: an unknown `quant`, or another one than a quantised checkpoint has; no
    config.json, a damaged file, pickles, tensors that are missing, unexpected, mis-shaped or of a wrong type, by name,
    or an adapter (they come from anywhere) with NaN or infinity.
    """
    folder = locate(source)
    layout, config, stored = _open(folder)
    if layout == QUANTISED:
        made = quantisation(folder)
        if quant not in (None, made):
            raise ValueError(
                f"{folder} is quantised to {made} and can't become {quant}: load it without quant, or with "
                f"quant={quant!r} the checkpoint that it was made of"
            )
        quant = made
    adapted = bool(config.adapters)
    if not adapters:
        config = replace(config, adapters={})
        stored = {
            name: s
            for name, s in stored.items()
            if not any(part in name for part in (".lora_A.", ".lora_B.", ".lora."))
        }
    model, place = _empty(config), torch.device(device)
    expected = _entries(model.state_dict(), layout, adapted=adapted)
    parts = {part.name: part for part in quantize.parts(model, quant)} if quant else {}
    if layout == QUANTISED:
        expected = _in_pieces(expected, parts)
    stored = _without_tied_head(stored, expected)
    _check(expected, stored, folder, layout)

    names_of: dict[str, list[str]] = {}
    for name, entry in expected.items():
        names_of.setdefault(entry.ours, []).append(name)

    def pieces(ours: str) -> dict[str, Tensor]:
        """What is stored of a tensor, by the last word of its name, each in a mapping of its own that ends with it."""
        return {name.rpartition(".")[2]: _read(stored[name]) for name in names_of[ours]}

    for number, part in enumerate(parts.values()):
        progress(number / len(names_of))
        found = pieces(part.name)
        if ".lora." in part.name:
            for end, tensor in found.items():
                if tensor.is_floating_point():  # of packed ones any bytes are numbers
                    _check_finite(f"{part.name} ({end})", tensor)
        if layout == QUANTISED:
            part.put(part.form.stored(found, part.shape, place))
        else:
            (tensor,) = found.values()
            part.put(part.form(tensor.to(device=place, dtype=dtype).flatten(1)))
        del found
    if quant:
        give_back()
    state: dict[str, Tensor] = {}
    if quantize.EMBEDDING in parts and layout == QUANTISED:
        model.decoder.embed_tokens.register_parameter("weight", None)
        head = model.decoder.head
        assert isinstance(head, Quantised)
        if head.table is None:
            # Mapped once more: of rows that are looked up, only those take memory.
            packed = max(pieces(quantize.EMBEDDING).values(), key=lambda t: t.nbytes)
            head.table = packed.to(place)
    elif quantize.EMBEDDING in parts:
        (table,) = pieces(quantize.EMBEDDING).values()
        state[quantize.EMBEDDING] = table if place.type == "cpu" else table.to(place, dtype)
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
                anew = quant is not None and not entry.ours.startswith("decoder.")
                tensor = _read(stored[name]) if anew else tensors.get_tensor(stored[name].key)
                if ".lora." in entry.ours:
                    _check_finite(name, tensor)
                unit_axes = public_name(entry.ours, layout)[1]
                state[entry.ours] = tensor.reshape(entry.shape[unit_axes:]).to(
                    device=place, dtype=dtype
                )
    model.load_state_dict(state, strict=True, assign=True)
    state.clear()  # it would hold what is laid out anew
    if quant:
        quantize.prepare(model, quant)
        give_back()
    # A buffer that no checkpoint holds would still be on the meta device; modules compute such tables when they run.
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers())), (
        "a tensor was left without values"
    )
    return model.eval()


def _read(stored: _Stored) -> Tensor:
    with _safe_open(stored.file) as tensors:
        return tensors.get_tensor(stored.key)


_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_WHOLE_NUMBERS = {"U8": torch.uint8}
"""Of quantised weights."""
_WRITTEN = {kind: name for name, kind in (_TYPES | _WHOLE_NUMBERS).items()}


def read_config(source: str | Path) -> ModelConfig:
    """The sizes of a checkpoint: what config.json says, and what it leaves out from the tensors' shapes."""
    return _open(locate(source))[1]


def read_layout(source: str | Path) -> str:
    """Which of the three layouts a checkpoint has, or QUANTISED."""
    return _open(locate(source))[0]


def quantisation(source: str | Path) -> str | None:
    """The kind (`quantize.py`) to which a checkpoint's weights are quantised, or None. Raises ValueError for weights
    that something else has quantised, and for a newer version of our layout."""
    folder = locate(source)
    said = _read_json(folder / "config.json").get("quantization_config")
    if not said:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method != METHOD:
        raise ValueError(
            f"{folder}/config.json says that {method!r} quantised these weights; expected whole ones, or those of "
            "`polyphi export --quant`"
        )
    if said.get("format") != FORMAT or said.get("kind") not in quantize.STORED:
        raise ValueError(
            f"{folder} holds weights of kind {said.get('kind')!r} in version {said.get('format')!r} of the quantised "
            f"layout; this polyphi reads {', '.join(quantize.STORED)} in version {FORMAT}: install a newer one, or "
            "export the checkpoint again"
        )
    return str(said["kind"])


def stored_bytes(source: str | Path) -> int:
    """Bytes of all tensors of a checkpoint."""
    kinds = _TYPES | _WHOLE_NUMBERS
    found = _open(locate(source))[2].values()
    return sum(math.prod(t.shape) * kinds.get(t.type, torch.float32).itemsize for t in found)


def stored_types(source: str | Path) -> Counter[torch.dtype]:
    """How many parameters of a checkpoint are stored in which type; only headers are read."""
    counted: Counter[torch.dtype] = Counter()
    for name, tensor in _open(locate(source))[2].items():
        if name != "lm_head.weight":  # the embedding once more
            kind = _TYPES.get(tensor.type, torch.float32)  # of others, loading tells
            counted[kind] += math.prod(tensor.shape)
    return counted


def files_beside(source: str | Path, layout: str) -> list[Path]:
    """What goes along when a checkpoint is written again in a `layout`: its tokenizer, and where the layout stays the
    settings of its processor and templates too."""
    folder = locate(source)
    found = read_layout(folder)
    if layout not in (found, QUANTISED):  # quantised ones are described as whole ones are
        return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    ours = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    kept = (p for p in sorted(folder.iterdir()) if p.suffix in {".json", ".txt", ".jinja"})
    return [p for p in kept if p.name not in ours]


def locate(source: str | Path) -> Path:
    """The local folder of a checkpoint; a run's folder stands for its `model`, and `owner/name` (or `hf:owner/name`)
    that is no folder here comes from the hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        inner = folder / "model"
        made_here = (inner / "config.json").is_file() and not (folder / "config.json").exists()
        return inner if made_here else folder
    if folder.suffix == ".gguf":
        raise ValueError(
            f"{source} is a GGUF file; make a checkpoint of it: polyphi export {source} --out FOLDER"
        )
    repository = str(source).removeprefix("hf:")
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise ValueError(
            f"expected a checkpoint folder or a hub id owner/name, found no folder at {source}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises a family of network, cache and HTTP errors
        raise ValueError(
            f"no folder {source} here, and {repository} could not be fetched from the hub: {error}"
        ) from error


def _open(folder: Path) -> tuple[str, ModelConfig, dict[str, _Stored]]:
    """Layout, configuration and table of contents of a checkpoint folder."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; expected a checkpoint folder with config.json and safetensors"
        )
    written = _read_json(folder / "config.json")
    stored = _contents(_weight_files(folder))
    layout = described = _layout(written, stored)
    adapters = {}
    if quantisation(folder):
        layout = QUANTISED
        for name, said in written["quantization_config"].get("adapters", {}).items():
            adapters[name] = public_config.parse_peft(said, f"{folder}/config.json, adapter {name}")
    elif layout != "original":
        for place in sorted(p for p in folder.glob("*-lora") if p.is_dir()):
            said = _read_json(place / "adapter_config.json")
            adapters[place.name.removesuffix("-lora")] = public_config.parse_peft(
                said, f"{place}/adapter_config.json"
            )
            inside = _contents([place / "adapter_model.safetensors"])
            stored |= {
                f"{place.name}/{name.removeprefix(PEFT_PREFIX)}": s for name, s in inside.items()
            }

    def shape(ours: str) -> tuple[int, ...] | None:
        name, unit_axes = public_name(ours, layout, adapted=bool(adapters))
        return stored[name].shape[unit_axes:] if name in stored else None

    try:
        if layout == "original":
            adapters = public_config.parse_nested_adapters(written)
        config = public_config.parse(
            written,
            described,
            generation=_read_json(folder / "generation_config.json"),
            preprocessor=_read_json(folder / "preprocessor_config.json"),
            adapters=adapters,
            shape=shape,
        )
    except (TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"{folder}/config.json holds a value that makes no sense: {error!r}"
        ) from error
    return layout, config, stored


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        members = sorted(set(_read_json(index).get("weight_map", {}).values()))
        if strange := [m for m in members if Path(m).name != m or not m.endswith(".safetensors")]:
            raise ValueError(
                f"{index} names {strange[0]!r}; expected safetensors files in the same folder (pickles are refused)"
            )
        if absent := [m for m in members if not (folder / m).is_file()]:
            raise ValueError(
                f"{index} names {len(members)} shards, of which {len(absent)} are missing: {', '.join(absent)}"
            )
        return [folder / m for m in members]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if pickles := sorted(
        p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}
    ):
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code and is refused; expected model.safetensors"
        )
    raise ValueError(
        f"{folder} holds no weights; expected model.safetensors or model.safetensors.index.json"
    )


def _safe_open(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); was it cut off while copying?"
        ) from error


def _contents(files: Iterable[Path]) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for file in files:
        with _safe_open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                if key in stored:
                    raise ValueError(
                        f"tensor {key} stands in two files: {stored[key].file} and {file}"
                    )
                header = tensors.get_slice(key)
                stored[key] = _Stored(file, key, tuple(header.get_shape()), header.get_dtype())
    return stored


def _layout(written: Mapping[str, Any], stored: Mapping[str, _Stored]) -> str:
    model_type = written.get("model_type")
    known = {"phi3": "mini", "phi4mm": "original", "phi4_multimodal": "native"}
    if model_type in known:
        return known[model_type]
    if model_type is not None:
        raise ValueError(
            f"config.json says model_type {model_type!r}; expected one of {', '.join(known)}"
        )
    if any(".base_layer." in name or name.endswith("glb_GN") for name in stored):
        return "original"
    return (
        "native"
        if any(name.startswith(_IMAGE) or name.startswith(_AUDIO) for name in stored)
        else "mini"
    )


def _without_tied_head(
    stored: dict[str, _Stored], expected: Mapping[str, Entry]
) -> dict[str, _Stored]:
    """The head is the embedding; a checkpoint may store it once more, but then it must be the same."""
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
    expected: Mapping[str, Entry], stored: Mapping[str, _Stored], folder: Path, layout: str
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
            f"{name} expected {_type_told(entry.type)} found {stored[name].type}"
            for name, entry in expected.items()
            if name in stored and not _fits(entry.type, stored[name].type)
        ],
    }
    if not any(faults.values()):
        return
    parts = []
    for kind, found in faults.items():
        if found:
            more = f" ... and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
            parts.append(f"{len(found)} {kind}: {', '.join(found[:NAMES_SHOWN])}{more}")
    raise ValueError(
        f"{folder} does not hold what its config.json promises ({layout} layout, {len(expected)} tensors expected, "
        f"{len(stored)} found). {'; '.join(parts)}"
    )


def _fits(wanted: torch.dtype | None, found: str) -> bool:
    if wanted is None:
        return found in _TYPES
    return (_TYPES | _WHOLE_NUMBERS).get(found) == wanted


def _type_told(wanted: torch.dtype | None) -> str:
    return "a float" if wanted is None else str(wanted).removeprefix("torch.")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    low, high = tensor.aminmax()  # NaN comes through
    if not bool((high.float() - low.float()).isfinite()):
        raise ValueError(f"{name} holds NaN or infinity; expected an adapter of numbers")


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(
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
        state |= quantize.calibrated(model, quant, calibration)
    write(
        model.config,
        tensor,
        folder,
        layout,
        dtype=dtype,
        quant=quant,
        max_shard_bytes=max_shard_bytes,
        files=files,
    )


def write(
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
    """`save` for tensors that come one at a time: `tensor(our name)` is asked for each, and gives it, or what a file
    holds of it where it is quantised already; only one shard is held."""
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
        dtype = dtype or torch.bfloat16  # as `load` has it
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
    config = _as_stored(config, layout)
    entries = names(config, layout if quant is None else QUANTISED)
    beside: dict[str, dict[str, Entry]] = {}
    for name in [name for name in entries if "/" in name]:
        place, _, rest = name.partition("/")
        beside.setdefault(place, {})[PEFT_PREFIX + rest] = entries.pop(name)

    def ready(entry: Entry) -> Tensor:
        found = tensor(entry.ours)
        assert isinstance(found, Tensor), f"pieces of {entry.ours}, which stays whole"
        return found.detach().reshape(entry.shape).to("cpu", dtype).contiguous()

    def written() -> Iterator[tuple[str, Tensor]]:
        parts = {p.name: p for p in quantize.parts(_empty(config), quant)} if quant else {}
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

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        work.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        stored = _write_shards(written(), work, max_shard_bytes, aligned=quant is not None)
        said = {**public_config.write(config, layout), "torch_dtype": stored}
        if quant is not None:
            adapters = {name: public_config.write_peft(a) for name, a in config.adapters.items()}
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
            _write_json(work / place / "adapter_config.json", public_config.write_peft(adapter))
        for file in files:
            shutil.copy(file, work / Path(file).name)
        _replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _replace(work: Path, target: Path) -> None:
    """Puts `work` where `target` is; the old one goes aside first, since a rename can't replace a full folder."""
    if not target.exists():
        work.rename(target)
        return
    old = work.with_name(work.name + ".old")
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


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
