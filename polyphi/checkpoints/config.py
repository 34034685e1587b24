"""config.json <-> `ModelConfig`, for the three public layouts. This module converts dictionaries and opens no files.

Values without a key in a layout are inferred from tensor shapes, or stored under the key `polyphi`, which other readers
ignore. Source: the published configurations; transformers' conversion script.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from polyphi.checkpoints.adapters import whole_number
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


def _fill(config_type: type[_Sizes], *sources: Mapping[str, Any]) -> _Sizes:
    """A configuration from several sources, of which later ones take precedence; other keys are ignored."""
    names = {f.name for f in fields(config_type)}
    values: dict[str, Any] = {}
    for source in sources:
        values |= {k: v for k, v in source.items() if k in names and v is not None}
    return config_type(**values)


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
    be empty), and tensor shapes. Raises ValueError for another type of model."""
    own = raw_config.get("polyphi", {})
    decoder = _parse_decoder(raw_config, generation, shape)
    if layout == "mini":
        return ModelConfig(decoder, None, None, dict(adapters))
    if layout == "native":
        raw_vision, raw_audio = raw_config.get("vision_config"), raw_config.get("audio_config")
    else:
        raw_vision = (raw_config.get("embd_layer") or {}).get("image_embd_layer")
        raw_audio = (raw_config.get("audio_processor") or {}).get("config")
        raw_audio = raw_audio and _original_audio(raw_audio)
    vision = audio = None
    if raw_vision or shape("vision.encoder.patch_embedding.weight"):
        values = {"max_crops": preprocessor.get("dynamic_hd"), **(raw_vision or {})}
        vision = _fill(VisionConfig, _vision_sizes(shape), values, own.get("vision", {}))
        _check_vision_heads(vision)
    if raw_audio or shape("audio.encoder.global_mean"):
        audio = _fill(AudioConfig, _audio_sizes(shape), raw_audio or {}, own.get("audio", {}))
    return ModelConfig(decoder, vision, audio, dict(adapters))


def _check_vision_heads(config: VisionConfig) -> None:
    """Raise ValueError where the vision encoder's width isn't a multiple of its number of heads."""
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads:
        raise ValueError(
            f"the vision encoder's hidden_size {width} must be a multiple of its num_attention_heads, found {heads}; "
            "Microsoft's layout implies 16 heads unless config.json has another number under polyphi.vision"
        )


def _parse_decoder(
    raw_config: Mapping[str, Any], generation: Mapping[str, Any], shape: Shape
) -> DecoderConfig:
    rope = {**(raw_config.get("rope_parameters") or {}), **(raw_config.get("rope_scaling") or {})}
    nested = (
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    )  # by transformers 5
    values = {**{k: rope[k] for k in nested if k in rope}, **raw_config}
    heads = values.get("num_attention_heads")
    if heads is None:
        raise ValueError(
            "config.json has no num_attention_heads, which can't be inferred from tensor shapes"
        )
    if values.get("tie_word_embeddings") is False:
        raise ValueError(
            "expected tie_word_embeddings true in config.json, as in the Phi-4 models, found false"
        )
    # transformers' class default, which its config.json files may omit
    values.setdefault("partial_rotary_factor", 1.0)
    eos = generation.get("eos_token_id", values.get("eos_token_id"))
    if eos is not None:
        values["eos_token_ids"] = (eos,) if isinstance(eos, int) else tuple(eos)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in {"longrope", "su", "default"}:
        raise ValueError(
            f"expected the rope type longrope, or none, in config.json, found {rope_type!r}"
        )
    for table in ("short_factor", "long_factor"):
        values[table] = tuple(float(x) for x in rope.get(table, ()))

    inferred: dict[str, Any] = {}
    if embedding := shape("decoder.embed_tokens.weight"):
        inferred["vocab_size"], inferred["hidden_size"] = embedding
    if down := shape("decoder.layers.0.mlp.down_proj.weight"):
        inferred["intermediate_size"] = down[1]
    if layers := _count(shape, "decoder.layers.{}.input_layernorm.weight"):
        inferred["num_hidden_layers"] = layers
    if qkv := shape("decoder.layers.0.self_attn.qkv_proj.weight"):
        head = values.get("hidden_size", qkv[1]) // heads
        inferred["num_key_value_heads"] = (qkv[0] // head - heads) // 2
    config = replace(
        _fill(DecoderConfig, inferred, values), sliding_window=values.get("sliding_window")
    )
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        raise ValueError(
            f"config.json has a sliding window of {config.sliding_window} tokens within "
            f"{config.max_position_embeddings}; only full attention is supported, as in the Phi-4 models"
        )
    half = config.rotary_dim // 2
    if rope_type == "default":  # a single table: all factors 1 and no switch
        plain = (1.0,) * half
        limit = config.max_position_embeddings
        return replace(
            config, short_factor=plain, long_factor=plain, original_max_position_embeddings=limit
        )
    lengths = len(config.short_factor), len(config.long_factor)
    if lengths != (half, half):
        raise ValueError(
            f"LongRoPE tables need {half} factors for {config.rotary_dim} rotated channels, found {lengths[0]} short "
            f"and {lengths[1]} long"
        )
    return config


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


def _from_shapes(table: Mapping[str, tuple[str, int]], shape: Shape) -> dict[str, Any]:
    sizes = {}
    for field, (ours, axis) in table.items():
        dimensions = shape(ours)
        if dimensions is not None and len(dimensions) > axis:
            sizes[field] = dimensions[axis]
    return sizes


def _vision_sizes(shape: Shape) -> dict[str, Any]:
    sizes = _from_shapes(_VISION_SHAPES, shape)
    if layers := _count(shape, "vision.encoder.layers.{}.layer_norm1.weight"):
        sizes["num_hidden_layers"] = layers
    positions = shape("vision.encoder.position_embedding.weight")
    if positions and "patch_size" in sizes:
        sizes["crop_size"] = math.isqrt(positions[0]) * sizes["patch_size"]
    # The number of heads isn't in a shape. VisionConfig's default is right: Microsoft's code builds the tower with 16
    # heads for any width, and 16 is the default of transformers' configuration too.
    return sizes


def _audio_sizes(shape: Shape) -> dict[str, Any]:
    sizes = _from_shapes(_AUDIO_SHAPES, shape)
    if blocks := _count(shape, "audio.encoder.blocks.{}.layer_norm.weight"):
        sizes["num_blocks"] = blocks
    if table := shape("audio.encoder.relative_attention_bias.weight"):
        sizes["bias_max_distance"] = table[0] // 2
    return sizes


_ORIGINAL_AUDIO = {
    "hidden_size": "attention_dim",
    "num_attention_heads": "attention_heads",
    "intermediate_size": "linear_units",
    "depthwise_separable_out_channel": "depthwise_seperable_out_channel",  # the published key is misspelt
}
"""Our (the native layout's) field -> the original layout's key."""
_SAME_AUDIO = ("num_blocks", "input_size", "time_reduction", "kernel_size", "ext_pw_out_channel")


def _original_audio(source: Mapping[str, Any]) -> dict[str, Any]:
    values = {ours: source.get(theirs) for ours, theirs in _ORIGINAL_AUDIO.items()}
    values |= {key: source.get(key) for key in _SAME_AUDIO}
    values["nemo_conv_channels"] = (source.get("nemo_conv_settings") or {}).get("conv_channels")
    values["bias_max_distance"] = (source.get("relative_attention_bias_args") or {}).get(
        "t5_bias_max_distance"
    )
    return values


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
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [float(x) for x in d.short_factor],
            "long_factor": [float(x) for x in d.long_factor],
        },
        "max_position_embeddings": d.max_position_embeddings,
        "original_max_position_embeddings": d.original_max_position_embeddings,
        "sliding_window": d.sliding_window,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": d.initializer_range,
        "bos_token_id": d.bos_token_id,
        "eos_token_id": list(d.eos_token_ids),
        "pad_token_id": d.pad_token_id,
    }
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
