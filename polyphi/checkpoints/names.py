"""The table of renames: tensors of the public layouts <-> our names, with a reason each.

- `mini`: Phi-4-mini as published, the language model alone (transformers' `Phi3ForCausalLM`); adapters are in separate
  folders, as in the native layout.
- `original`: Phi-4-multimodal as Microsoft publishes it (`Phi4MMForCausalLM`), adapters nested in the checkpoint.
- `native`: the same model as the transformers library stores it (`Phi4MultimodalForCausalLM`), with adapters as PEFT
  folders `vision-lora/` and `speech-lora/`, and any other adapter as `NAME-lora/`.
- `llama`: a language model of the Llama family (transformers' `LlamaForCausalLM`): as `mini`, with the linears of
  FUSED separate.

Source: names and shapes of the published checkpoints; transformers' conversion script for the native names.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch

from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.quantization.integer_weights import LEVELS

LAYOUTS = ("mini", "original", "native", "llama")
TEXT_LAYOUTS = ("mini", "llama")
"""Layouts of language models alone."""
QUANTIZED, METHOD, FORMAT = "quantized", "polyphi", 3
"""The layout of quantized checkpoints, and the method and version of the layout in the `quantization_config` of their
config.json."""
PUBLISHED_ADAPTERS = ("vision", "speech")
"""The adapters that the original layout supports."""
PEFT_PREFIX = "base_model.model."
"""Prefix of PEFT before every module name of an adapter file; names are read with and without it."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Names of dtypes in safetensors headers."""
BYTES = {"U8": torch.uint8}
"""Dtype of packed weights."""


@dataclass(frozen=True)
class Rename:
    """A rule of the table. `<x>` matches a part of a name between dots, or its end. A rule matches the prefix of a name
    and keeps the suffix; the first matching rule applies. `unit_axes` leading axes of length 1 precede the shape in
    both public layouts."""

    ours: str
    original: str
    native: str
    why: str
    unit_axes: int = 0


IMAGE = "model.embed_tokens_extend.image_embed"
AUDIO = "model.embed_tokens_extend.audio_embed"
_LINEAR = "decoder.layers.<n>.<block>.<linear>"
_PUBLIC_LINEAR = "model.layers.<n>.<block>.<linear>"
_BLOCK = "audio.encoder.blocks.<n>"
_PUBLIC_BLOCK = f"{AUDIO}.encoder.encoders.<n>"


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
    _same("decoder.lm_head", "lm_head", "an untied head is a part of the decoder"),
    _same("decoder", "model", "three parts side by side: decoder, vision, audio"),
    # Vision.
    _same("vision.encoder.patch_embedding", f"{IMAGE}.img_processor.embeddings.patch_embedding",
          "no level for two members"),
    _same("vision.encoder.position_embedding", f"{IMAGE}.img_processor.embeddings.position_embedding", "likewise"),
    _same("vision.encoder.layers", f"{IMAGE}.img_processor.encoder.layers", "it is the encoder already"),
    _same("vision.encoder", f"{IMAGE}.img_processor", "it encodes; pictures are processed in `processing`"),
    Rename("vision.projector.global_separator", f"{IMAGE}.glb_GN", f"{IMAGE}.global_img_feature_extensor",
           "it separates the crops from the global view", unit_axes=2),
    Rename("vision.projector.row_separator", f"{IMAGE}.sub_GN", f"{IMAGE}.sub_img_feature_extensor",
           "it ends every row of cells, the global view's too", unit_axes=3),
    Rename("vision.projector.up", f"{IMAGE}.img_projection.0", f"{IMAGE}.img_projection_up", "a name, not an index"),
    Rename("vision.projector.down", f"{IMAGE}.img_projection.2", f"{IMAGE}.img_projection_down", "likewise"),
    # Audio.
    _same("audio.encoder.global_mean", f"{AUDIO}.encoder.encoder_embedding.global_mean", "no level for two buffers"),
    _same("audio.encoder.global_invstd", f"{AUDIO}.encoder.encoder_embedding.global_invstd", "likewise"),
    _same("audio.encoder.subsampling", f"{AUDIO}.encoder.embed", "it shortens time eightfold; nothing is embedded"),
    _same("audio.encoder.relative_attention_bias", f"{AUDIO}.encoder.relative_attention_bias_layer.bias_values",
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
    _same("audio.encoder.blocks", f"{AUDIO}.encoder.encoders", "the encoder's blocks are no encoders"),
    Rename("audio.projector.speech.up", f"{AUDIO}.audio_projection.speech.0", f"{AUDIO}.up_proj_for_speech",
           "a name, not an index"),
    Rename("audio.projector.speech.down", f"{AUDIO}.audio_projection.speech.2", f"{AUDIO}.down_proj_for_speech",
           "likewise"),
    Rename("audio.projector.vision.up", f"{AUDIO}.audio_projection.vision.0", f"{AUDIO}.up_proj_for_vision_speech",
           "likewise; the branch of audio in sequences with an image"),
    Rename("audio.projector.vision.down",
           f"{AUDIO}.audio_projection.vision.2", f"{AUDIO}.down_proj_for_vision_speech", "likewise"),
)
# fmt: on


def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(r"<(\w+)>", r"(?P<\1>[^.]+)", ours.replace(".", r"\.")) + r"(?P<rest>(\..+)?)$"
    )


_PATTERNS = [(_pattern(r.ours), r) for r in RENAMES]


FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Fused linear -> the linears that the `llama` layout has instead, in the order of its outputs. Their adapters have the
same rows of `b`, and each a copy of `a`."""


@dataclass(frozen=True)
class NamedTensor:
    """Our name of a tensor, its shape in the layout, and its required dtype (None: any float). `rows`: the first row
    and the end of those rows of ours that it has (None: all)."""

    ours: str
    shape: tuple[int, ...]
    type: torch.dtype | None = None
    rows: tuple[int, int] | None = None


def public_name(ours: str, layout: str, *, adapted: bool = True) -> tuple[str, int]:
    """(public name of one of our tensors, its number of leading axes of length 1). `adapted`: whether the checkpoint
    has adapters; only then the original layout has `.base_layer` in names."""
    if layout == QUANTIZED:
        return ours, 0
    for pattern, rule in _PATTERNS:
        if match := pattern.match(ours):
            wrapped = layout == "original" and (
                adapted or not rule.original.endswith(".base_layer.weight")
            )
            public = rule.original if wrapped else rule.native
            return re.sub(r"<(\w+)>", lambda m: match[m[1]], public) + match["rest"], rule.unit_axes
    raise AssertionError(f"no rename covers {ours}")


def public_names(ours: str, layout: str, *, adapted: bool = True) -> tuple[list[str], int]:
    """Like `public_name`, for a tensor whose rows may be in several tensors of the `llama` layout."""
    name, unit_axes = public_name(ours, layout, adapted=adapted)
    if layout == "llama":
        for fused, parts in FUSED.items():
            if f".{fused}." in name:
                return [name.replace(fused, part) for part in parts], unit_axes
    return [name], unit_axes


def tensor_names(config: ModelConfig, layout: str = "original") -> dict[str, NamedTensor]:
    """Every tensor of a checkpoint with this configuration: public name -> `NamedTensor`. Adapter files of the native
    layout have names such as `vision-lora/NAME`. The layouts mini and llama have only the language model."""
    config = as_stored(config, layout)
    return entries_of(empty_model(config), layout, adapted=bool(config.adapters))


def as_stored(config: ModelConfig, layout: str) -> ModelConfig:
    """The configuration of the part of a model that a layout stores, without users' modalities: `mini` and `llama` omit
    the towers, and with them the adapters."""
    config = config.without_further()
    if layout in TEXT_LAYOUTS and (config.vision or config.audio):
        return replace(config, vision=None, audio=None, adapters={})
    return config


def is_llama(config: DecoderConfig) -> bool:
    """Whether a decoder is one of the Llama family: whole heads are rotated, by a single table of positions."""
    one_table = config.short_factor == config.long_factor and config.rope_scale == 1
    return one_table and config.rotary_dim == config.head_dim


def own_layout(config: ModelConfig) -> str:
    """The layout in which a model is written unless another one is chosen."""
    has_towers = config.vision or config.audio or config.further
    return "llama" if is_llama(config.decoder) and not has_towers else "native"


def empty_model(config: ModelConfig) -> PhiModel:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return PhiModel(config)


def entries_of(model: PhiModel, layout: str, *, adapted: bool) -> dict[str, NamedTensor]:
    """Every tensor of a checkpoint of this model: public name -> `NamedTensor`."""
    if layout not in (*LAYOUTS, QUANTIZED):
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    entries: dict[str, NamedTensor] = {}
    for ours, tensor in model.state_dict().items():
        names, unit_axes = public_names(ours, layout, adapted=adapted)
        shape = (1,) * unit_axes + tuple(tensor.shape)
        if len(names) == 1 or ours.endswith(".a"):
            entries |= dict.fromkeys(names, NamedTensor(ours, shape))
            continue
        start = 0
        for name in names:
            linear = next(part for part in chain(*FUSED.values()) if f".{part}." in name)
            end = start + linear_shape(linear, model.config.decoder)[0]
            entries[name] = NamedTensor(ours, (end - start, *shape[1:]), rows=(start, end))
            start = end
    return entries


def linear_shape(linear: str, decoder: DecoderConfig) -> tuple[int, int]:
    """(outputs, inputs) of a linear or of a part of a fused one."""
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    queries = decoder.num_attention_heads * decoder.head_dim
    keys = decoder.num_key_value_heads * decoder.head_dim
    return {
        "qkv_proj": (queries + 2 * keys, hidden),
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_up_proj": (2 * inner, hidden),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }[linear.rpartition(".")[2]]


def in_pieces(
    entries: Mapping[str, NamedTensor],
    parts: Mapping[str, quantize.WeightTarget],
    stored: Container[str] = (),
) -> dict[str, NamedTensor]:
    """Entries of a quantized checkpoint: each quantized weight is replaced by its pieces, such as `NAME.r8` and
    `NAME.row`; by those of the levels of a GGUF file where `stored` has them."""
    result = {}
    for name, entry in entries.items():
        if entry.ours not in parts:
            result[name] = entry
            continue
        part = parts[entry.ours]
        form = LEVELS if f"{name}.{LEVELS.piece}" in stored else part.form
        for end, (dtype, shape) in form.layout(part.shape).items():
            result[f"{name}.{end}"] = NamedTensor(entry.ours, shape, dtype)
    return result
