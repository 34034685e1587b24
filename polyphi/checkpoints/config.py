"""config.json <-> `ModelConfig`, for the public layouts. This module converts dictionaries and opens no files.

Values without a key in a layout are inferred from tensor shapes, or stored under the key `polyphi`, which other readers
ignore. Source: the published configurations; transformers' conversion script.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from polyphi.checkpoints.adapter_config import describe, object_at, whole_number
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)

# ---- reading ---------------------------------------------------------------------------------------------------------

Shape = Callable[[str], tuple[int, ...] | None]
"""A function that returns the shape of a tensor by our name, None where the checkpoint doesn't have it."""
_Sizes = TypeVar("_Sizes", DecoderConfig, VisionConfig, AudioConfig)
_WIDTH, _TOKENS = (1, 1 << 20), (1, 1 << 27)
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "input_size"), _WIDTH),
    **dict.fromkeys(("nemo_conv_channels", "ext_pw_out_channel"), _WIDTH),
    "depthwise_separable_out_channel": _WIDTH,
    **dict.fromkeys(("num_hidden_layers", "num_blocks"), (1, 1000)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), (1, 4096)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), (0, 1)),
    "rope_theta": (1, 1e12),
    "partial_rotary_factor": (0, 1),
    "max_position_embeddings": _TOKENS,
    "original_max_position_embeddings": (2, 1 << 27),
    **dict.fromkeys(("short_factor", "long_factor"), (1e-3, 1e6)),
    "sliding_window": _TOKENS,
    "attention_head_dim": (1, 1 << 16),
    "llama3_rope": (1e-3, 1 << 27),
    "initializer_range": (0, 1),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "eos_token_ids"), (0, (1 << 31) - 1)),
    **dict.fromkeys(("image_token_id", "audio_token_id"), (0, (1 << 31) - 1)),
    "crop_size": (1, 1 << 14),
    "patch_size": (1, 1 << 10),
    "max_crops": (1, 1 << 12),
    "time_reduction": (1, 64),
    "kernel_size": (1, 1 << 10),
    "bias_max_distance": (1, 1 << 20),
    "window": (1, 1 << 20),
}
"""Field -> the smallest and the largest value, far beyond those of published models: what a hostile or damaged
config.json promises takes no minutes and no memory before it is compared with the tensors."""


Entries = Mapping[str, tuple[str, Any]]
"""Field -> (the key that has its value, by its path in config.json, and the value)."""


def entries_at(values: Mapping[str, Any], path: str = "", keys: Mapping[str, str] = {}) -> Entries:
    """The values of an object of config.json at `path`; `keys` has those with another name than the field."""
    return {field: (path + keys.get(field, field), value) for field, value in values.items()}


def fill(config_type: type[_Sizes], *sources: Entries) -> _Sizes:
    """A configuration from several sources, of which later ones take precedence; other keys are ignored. Raises
    ValueError for a value of another type or out of its bounds."""
    types = {f.name: f.type for f in fields(config_type)}
    values: dict[str, Any] = {}
    for source in sources:
        for name, (key, value) in source.items():
            if name in types and value is not None:
                values[name] = checked(key, value, name, types[name])
    return config_type(**values)


def checked(key: str, value: Any, name: str, type_: Any) -> Any:
    """A field's value of config.json, with lists as tuples and integers as floats where the field has these."""
    if type_ is bool:
        if not isinstance(value, bool):
            raise ValueError(f"expected {key} to be true or false, found {describe(value)}")
        return value
    low, high = BOUNDS[name]
    number = type_ in (float, tuple[float, ...])

    def fits(value: Any) -> bool:
        types = int | float if number else int
        return isinstance(value, types) and not isinstance(value, bool) and low <= value <= high

    what = f"{'numbers' if number else 'integers'} from {low:,} to {high:,}"
    if type_ in (tuple[float, ...], tuple[int, ...]):
        if isinstance(value, list | tuple) and all(map(fits, value)):
            return tuple(float(x) if number else x for x in value)
        wrong = next((x for x in value if not fits(x)), None) if isinstance(value, list) else value
        raise ValueError(f"expected {key} to be {what}, found {describe(wrong)}")
    if not fits(value):
        article = "a number" if number else "an integer"
        raise ValueError(
            f"expected {key} to be {article} from {low:,} to {high:,}, found {describe(value)}"
        )
    return float(value) if number else value


def parse(
    raw_config: Mapping[str, Any],
    layout: str,
    *,
    generation: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    adapters: Mapping[str, AdapterConfig],
    shape: Shape,
) -> ModelConfig:
    """The configuration from config.json (`raw_config`), generation_config.json and preprocessor_config.json (both may
    be empty), and tensor shapes. Raises ValueError for another type of model, and for a value of another type or out of
    its bounds; no tensor is made before."""
    own = object_at(raw_config, "polyphi")
    if layout == "llama":
        raw_config = _llama(raw_config)
    decoder = _parse_decoder(raw_config, generation, shape)
    if layout in ("mini", "llama"):
        return ModelConfig(decoder, None, None, dict(adapters))
    if layout == "native":
        raw_vision = object_at(raw_config, "vision_config")
        vision_entries = entries_at(raw_vision, "vision_config.")
        raw_audio = object_at(raw_config, "audio_config")
        audio_entries = entries_at(raw_audio, "audio_config.")
    else:
        raw_vision = object_at(
            object_at(raw_config, "embd_layer"), "image_embd_layer", "embd_layer."
        )
        vision_entries = entries_at(raw_vision, "embd_layer.image_embd_layer.")
        raw_audio = object_at(
            object_at(raw_config, "audio_processor"), "config", "audio_processor."
        )
        audio_entries = _original_audio(raw_audio)
    vision = audio = None
    if raw_vision or shape("vision.encoder.patch_embedding.weight"):
        crops = {
            "max_crops": ("dynamic_hd of preprocessor_config.json", preprocessor.get("dynamic_hd"))
        }
        further = entries_at(object_at(own, "vision", "polyphi."), "polyphi.vision.")
        vision = fill(VisionConfig, _vision_sizes(shape), crops, vision_entries, further)
        _check_vision_heads(vision)
    if raw_audio or shape("audio.encoder.global_mean"):
        further = entries_at(object_at(own, "audio", "polyphi."), "polyphi.audio.")
        audio = fill(AudioConfig, _audio_sizes(shape), audio_entries, further)
        if audio.hidden_size % audio.num_attention_heads:
            raise ValueError(
                f"the audio encoder's hidden_size {audio.hidden_size} must be a multiple of its num_attention_heads, "
                f"found {audio.num_attention_heads}"
            )
    return ModelConfig(decoder, vision, audio, dict(adapters))


def _check_vision_heads(config: VisionConfig) -> None:
    """Raise ValueError where the vision encoder's width isn't a multiple of its number of heads."""
    heads, width = config.num_attention_heads, config.hidden_size
    if width % heads:
        raise ValueError(
            f"the vision encoder's hidden_size {width} must be a multiple of its num_attention_heads, found {heads}; "
            "Microsoft's layout implies 16 heads unless config.json has another number under polyphi.vision"
        )


def _parse_decoder(
    raw_config: Mapping[str, Any], generation: Mapping[str, Any], shape: Shape
) -> DecoderConfig:
    rope_objects = [
        (key, object_at(raw_config, key)) for key in ("rope_parameters", "rope_scaling")
    ]
    rope = {
        name: (f"{key}.{name}", value)
        for key, values in rope_objects
        for name, value in values.items()
    }
    nested = (
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "short_factor",
        "long_factor",
    )  # the first three by transformers 5
    # transformers' class default, which its config.json files may omit
    default = entries_at({"partial_rotary_factor": 1.0, "short_factor": (), "long_factor": ()})
    entries = {
        **default,
        **{name: rope[name] for name in nested if name in rope},
        **entries_at({name: value for name, value in raw_config.items() if value is not None}),
    }
    entries.pop("llama3_rope", None)  # it comes from the object of positions
    heads = _heads(raw_config)
    key, eos = "eos_token_id of generation_config.json", generation.get("eos_token_id")
    if eos is None:
        key, eos = "eos_token_id", raw_config.get("eos_token_id")
    if eos is not None:
        entries["eos_token_ids"] = (key, eos if isinstance(eos, list) else [eos])
    _, rope_type = rope.get("rope_type", rope.get("type", ("", "default")))
    if rope_type not in ("longrope", "su", "llama3", "default"):
        raise ValueError(
            f"expected the rope type longrope, llama3 or none in config.json, found {describe(rope_type)}"
        )

    inferred: dict[str, Any] = {}
    if embedding := _matrix(shape, "decoder.embed_tokens.weight"):
        inferred["vocab_size"], inferred["hidden_size"] = embedding
    if down := _matrix(shape, "decoder.layers.0.mlp.down_proj.weight"):
        inferred["intermediate_size"] = down[1]
    if layers := _count(shape, "decoder.layers.{}.input_layernorm.weight"):
        inferred["num_hidden_layers"] = layers
    if qkv := _matrix(shape, "decoder.layers.0.self_attn.qkv_proj.weight"):
        width = entries.get("hidden_size", ("", None))[1]
        head = (width if type(width) is int else qkv[1]) // heads
        _, own = entries.get("attention_head_dim", ("", None))
        head = own if type(own) is int else head
        inferred["num_key_value_heads"] = (qkv[0] // max(1, head) - heads) // 2
    config = replace(
        fill(DecoderConfig, _shapes(inferred), entries),
        sliding_window=raw_config.get("sliding_window"),
    )
    if config.attention_head_dim == config.hidden_size // heads:
        config = replace(config, attention_head_dim=None)
    check_heads(config)
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        raise ValueError(
            f"config.json has a sliding window of {config.sliding_window} tokens within "
            f"{config.max_position_embeddings}; only full attention is supported, as in the Phi-4 models"
        )
    half = config.rotary_dim // 2
    if rope_type in ("default", "llama3"):  # a single table and no switch
        factors, limit = (1.0,) * half, config.max_position_embeddings
        if rope_type == "llama3":
            config = replace(config, llama3_rope=_llama3_rope(rope))
            factors = llama3_factors(config)
        return replace(
            config,
            short_factor=factors,
            long_factor=factors,
            original_max_position_embeddings=limit,
        )
    lengths = len(config.short_factor), len(config.long_factor)
    if lengths != (half, half):
        raise ValueError(
            f"LongRoPE tables need {half} factors for {config.rotary_dim} rotated channels, found {lengths[0]} short "
            f"and {lengths[1]} long"
        )
    return config


LLAMA3_ROPE = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
"""Keys of Llama 3's rope scaling."""


def _llama3_rope(rope: Entries) -> tuple[float, ...]:
    """The values of LLAMA3_ROPE. Raises ValueError where one is missing, or the two frequencies aren't in order."""
    key = next((key.rpartition(".")[0] for key, _ in rope.values()), "rope_scaling")
    if missing := [name for name in LLAMA3_ROPE if name not in rope]:
        raise ValueError(f"expected {key}.{missing[0]} for the rope type llama3, found none")
    values = checked(key, [rope[name][1] for name in LLAMA3_ROPE], "llama3_rope", tuple[float, ...])
    if values[1] >= values[2]:
        raise ValueError(
            f"expected {key}.low_freq_factor below high_freq_factor, found {values[1]:g} and {values[2]:g}"
        )
    return tuple(values)


def llama3_factors(config: DecoderConfig) -> tuple[float, ...]:
    """What Llama 3's rope scaling divides each frequency by: 1 for wavelengths below a length, `factor` above a longer
    one, between them the frequency is interpolated. Source: the published configurations of Llama 3.1; transformers'
    `_compute_llama3_parameters`."""
    factor, low, high, original = config.llama3_rope
    factors = []
    for pair in range(config.rotary_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.rotary_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
"""Values of a config.json of the llama layout that may lack them: those of transformers' class."""


def _llama(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the llama layout with our names. Raises ValueError for what our decoder doesn't have."""
    for key in ("attention_bias", "mlp_bias"):
        if raw_config.get(key):
            raise ValueError(
                f"expected {key} false in config.json, found true: no linear has a bias"
            )
    if (activation := raw_config.get("hidden_act", "silu")) != "silu":
        raise ValueError(
            f"expected the hidden_act silu in config.json, found {describe(activation)}"
        )
    values = {key: value for key, value in raw_config.items() if value is not None}
    values["attention_head_dim"] = values.pop("head_dim", None)
    values["tie_word_embeddings"] = values.get("tie_word_embeddings", False)
    eos = values.get("eos_token_id", 2)
    first = eos[0] if isinstance(eos, list) and eos else eos
    tokens = {"bos_token_id": first, "pad_token_id": first}
    return {**_LLAMA_DEFAULTS, **tokens, **values}


def _heads(raw_config: Mapping[str, Any]) -> int:
    """The number of attention heads, which isn't in a shape."""
    if raw_config.get("num_attention_heads") is None:
        raise ValueError(
            "config.json has no num_attention_heads, which can't be inferred from tensor shapes"
        )
    name = "num_attention_heads"
    heads: int = checked(name, raw_config[name], name, int)
    return heads


def check_heads(config: DecoderConfig) -> None:
    """Raise ValueError where the widths of the language model don't fit its numbers of heads."""
    width, heads, groups = (
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    rotated = config.rotary_dim
    fits = config.attention_head_dim is not None or width % heads == 0
    if not fits or heads % groups or rotated < 2 or rotated % 2:
        raise ValueError(
            f"expected a hidden_size that is a multiple of num_attention_heads, which is a multiple of "
            f"num_key_value_heads, and an even number of rotated channels in a head; found {width}, {heads}, {groups} "
            f"and {rotated}"
        )
    if not config.eos_token_ids:
        raise ValueError("expected at least one eos_token_id, found an empty list")


def _shapes(sizes: Mapping[str, Any]) -> Entries:
    """Sizes that come from shapes of tensors."""
    return {name: (f"{name} (of the tensors)", value) for name, value in sizes.items()}


def _matrix(shape: Shape, name: str) -> tuple[int, ...] | None:
    """The shape of a matrix; None for another tensor, which is reported with its name later."""
    sizes = shape(name)
    return sizes if sizes and len(sizes) == 2 else None


def _count(shape: Shape, pattern: str) -> int:
    n = 0
    while shape(pattern.format(n)) is not None:
        n += 1
    return n


_VISION_SHAPES = {
    "hidden_size": ("vision.encoder.patch_embedding.weight", 0),
    "patch_size": ("vision.encoder.patch_embedding.weight", 2),
    "intermediate_size": ("vision.encoder.layers.0.mlp.fc1.weight", 0),
}
_AUDIO_SHAPES = {
    "hidden_size": ("audio.encoder.subsampling.out.weight", 0),
    "input_size": ("audio.encoder.global_mean", 0),
    "num_attention_heads": ("audio.encoder.relative_attention_bias.weight", 1),
    "nemo_conv_channels": ("audio.encoder.subsampling.conv.0.weight", 0),
    "intermediate_size": ("audio.encoder.blocks.0.feed_forward_in.down_proj.weight", 1),
    "kernel_size": ("audio.encoder.blocks.0.conv.dw_sep_conv_1d.dw_conv.weight", 2),
    "depthwise_separable_out_channel": (
        "audio.encoder.blocks.0.conv.dw_sep_conv_1d.pw_conv.weight",
        0,
    ),
    "ext_pw_out_channel": ("audio.encoder.blocks.0.conv.ext_pw_conv_1d.weight", 0),
}
"""Field -> the tensor and axis that give its value, where config.json doesn't (that of the original layout has no
vision fields)."""


def _from_shapes(table: Mapping[str, tuple[str, int]], shape: Shape) -> dict[str, int]:
    sizes = {}
    for field, (ours, axis) in table.items():
        dimensions = shape(ours)
        if dimensions is not None and len(dimensions) > axis:
            sizes[field] = dimensions[axis]
    return sizes


def _vision_sizes(shape: Shape) -> Entries:
    sizes = _from_shapes(_VISION_SHAPES, shape)
    if layers := _count(shape, "vision.encoder.layers.{}.layer_norm1.weight"):
        sizes["num_hidden_layers"] = layers
    positions = shape("vision.encoder.position_embedding.weight")
    if positions and "patch_size" in sizes:
        sizes["crop_size"] = math.isqrt(positions[0]) * sizes["patch_size"]
    # The number of heads isn't in a shape. VisionConfig's default is right: Microsoft's code builds the tower with 16
    # heads for any width, and 16 is the default of transformers' configuration too.
    return _shapes(sizes)


def _audio_sizes(shape: Shape) -> Entries:
    sizes = _from_shapes(_AUDIO_SHAPES, shape)
    if blocks := _count(shape, "audio.encoder.blocks.{}.layer_norm.weight"):
        sizes["num_blocks"] = blocks
    if table := shape("audio.encoder.relative_attention_bias.weight"):
        sizes["bias_max_distance"] = table[0] // 2
    return _shapes(sizes)


_ORIGINAL_AUDIO = {
    "hidden_size": "attention_dim",
    "num_attention_heads": "attention_heads",
    "intermediate_size": "linear_units",
    "depthwise_separable_out_channel": "depthwise_seperable_out_channel",  # the published key is misspelt
}
"""Our (the native layout's) field -> the original layout's key."""
_SAME_AUDIO = ("num_blocks", "input_size", "time_reduction", "kernel_size", "ext_pw_out_channel")


def _original_audio(source: Mapping[str, Any]) -> Entries:
    path = "audio_processor.config."
    values = {ours: source.get(theirs) for ours, theirs in _ORIGINAL_AUDIO.items()}
    values |= {key: source.get(key) for key in _SAME_AUDIO}
    values["nemo_conv_channels"] = object_at(source, "nemo_conv_settings", path).get(
        "conv_channels"
    )
    bias = object_at(source, "relative_attention_bias_args", path)
    values["bias_max_distance"] = bias.get("t5_bias_max_distance")
    keys = {
        **_ORIGINAL_AUDIO,
        "nemo_conv_channels": "nemo_conv_settings.conv_channels",
        "bias_max_distance": "relative_attention_bias_args.t5_bias_max_distance",
    }
    return entries_at(values, path, keys)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(config: ModelConfig, layout: str) -> dict[str, Any]:
    """The config.json of a layout. Values without a key are stored under `polyphi`, which other readers ignore."""
    d = config.decoder
    common = {
        "vocab_size": d.vocab_size,
        "hidden_size": d.hidden_size,
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.num_hidden_layers,
        "num_attention_heads": d.num_attention_heads,
        "num_key_value_heads": d.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": d.rms_norm_eps,
        "rope_theta": d.rope_theta,
        "partial_rotary_factor": d.partial_rotary_factor,
        "rope_scaling": _rope_scaling(d),
        "max_position_embeddings": d.max_position_embeddings,
        "original_max_position_embeddings": d.original_max_position_embeddings,
        "sliding_window": d.sliding_window,
        "tie_word_embeddings": d.tie_word_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": d.initializer_range,
        "bos_token_id": d.bos_token_id,
        "eos_token_id": list(d.eos_token_ids),
        "pad_token_id": d.pad_token_id,
    }
    if d.attention_head_dim is not None:
        common["attention_head_dim"] = d.attention_head_dim
    if layout == "llama":
        return _write_llama(d, common)
    if layout == "mini":
        return {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **common}
    if layout == "native":
        return {
            "architectures": ["Phi4MultimodalForCausalLM"],
            "model_type": "phi4_multimodal",
            **common,
            **_native_towers(config),
        }
    return {
        "architectures": ["Phi4MMForCausalLM"],
        "model_type": "phi4mm",
        **common,
        **_original_towers(config),
    }


def _rope_scaling(config: DecoderConfig) -> dict[str, Any]:
    if config.llama3_rope:
        values = map(whole_number, config.llama3_rope)
        return {"rope_type": "llama3", **dict(zip(LLAMA3_ROPE, values, strict=True))}
    return {
        "type": "longrope",
        "short_factor": [float(x) for x in config.short_factor],
        "long_factor": [float(x) for x in config.long_factor],
    }


def _write_llama(config: DecoderConfig, common: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the llama layout. Raises ValueError for heads of which only a part is rotated."""
    if config.rotary_dim != config.head_dim:
        raise ValueError(
            f"the layout llama has rotated heads, and this model rotates {config.rotary_dim} of {config.head_dim} "
            "channels; use the layout mini"
        )
    without = {"partial_rotary_factor", "attention_head_dim", "embd_pdrop", "resid_pdrop"}
    values = {key: value for key, value in common.items() if key not in without}
    values |= {"head_dim": config.head_dim, "mlp_bias": False}
    del values["sliding_window"]
    if not config.llama3_rope and set((*config.short_factor, *config.long_factor)) == {1.0}:
        values["rope_scaling"] = None
        del values["original_max_position_embeddings"]
    elif config.llama3_rope:
        del values["original_max_position_embeddings"]
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **values}


def write_preprocessor(config: ModelConfig) -> dict[str, Any]:
    """The preprocessor_config.json of the native layout, without which transformers' AutoProcessor loads no processor.
    Values that it doesn't list are transformers' defaults, which are the published ones."""
    values: dict[str, Any] = {"processor_class": "Phi4MultimodalProcessor"}
    if config.vision:
        crop = config.vision.crop_size
        values |= {
            "image_processor_type": "Phi4MultimodalImageProcessor",
            "size": {"height": crop, "width": crop},
            "patch_size": config.vision.patch_size,
            "dynamic_hd": config.vision.max_crops,
        }
    if config.audio:
        values |= {
            "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
            "feature_size": config.audio.input_size,
            "audio_compression_rate": config.audio.time_reduction,
        }
    return values


def _native_towers(config: ModelConfig) -> dict[str, Any]:
    raw_config: dict[str, Any] = {"vision_config": None, "audio_config": None, "polyphi": {}}
    if config.vision:
        values = asdict(config.vision)
        raw_config["polyphi"]["vision"] = {"max_crops": values.pop("max_crops")}
        raw_config["vision_config"] = {
            "model_type": "phi4_multimodal_vision",
            "feature_layer": -2,
            "image_size": config.vision.crop_size,
            **values,
        }
    if config.audio:
        values = asdict(config.audio)
        raw_config["polyphi"]["audio"] = {"window": values.pop("window")}
        raw_config["audio_config"] = {"model_type": "phi4_multimodal_audio", **values}
    return raw_config


def _original_towers(config: ModelConfig) -> dict[str, Any]:
    raw_config: dict[str, Any] = {"embd_layer": {"embedding_cls": "image_audio"}, "polyphi": {}}
    if config.vision:
        raw_config["polyphi"]["vision"] = asdict(config.vision)
        raw_config["embd_layer"]["image_embd_layer"] = {
            "crop_size": config.vision.crop_size,
            "embedding_cls": "tune_image",
            "hd_transform_order": "sub_glb",
            "image_token_compression_cls": "avg_pool_2d",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        }
    if config.audio:
        values = asdict(config.audio)
        raw_config["polyphi"]["audio"] = values
        raw_config["embd_layer"]["audio_embd_layer"] = {
            "compression_rate": config.audio.time_reduction,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        }
        encoder = {theirs: values[ours] for ours, theirs in _ORIGINAL_AUDIO.items()} | {
            k: values[k] for k in _SAME_AUDIO
        }
        encoder |= {
            "activation": "swish",
            "conv_activation": "swish",
            "conv_glu_type": "swish",
            "bias_in_glu": True,
            "causal": True,
            "batch_norm": False,
            "chunk_size": -1,
            "left_chunk": 18,
            "depthwise_multiplier": 1,
            "ext_pw_kernel_size": 1,
            "dropout_rate": 0.0,
            "input_layer": "nemo_conv",
            "encoder_embedding_config": {"input_size": config.audio.input_size},  # vLLM requires it
            "nemo_conv_settings": {"conv_channels": config.audio.nemo_conv_channels},
            "relative_attention_bias_args": {
                "type": "t5",
                "t5_bias_max_distance": config.audio.bias_max_distance,
            },
        }
        raw_config["audio_processor"] = {"name": "cascades", "config": encoder}
    for name, adapter in config.adapters.items():
        raw_config[f"{name}_lora"] = {
            "r": adapter.rank,
            "lora_alpha": whole_number(adapter.alpha),
            "dp": adapter.dropout,
            "layer": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
        }
    return raw_config
