"""config.json <-> `ModelConfig`, for the three public layouts. No files here: dictionaries in, dictionaries out.

What a layout has no key for is told by the tensors' shapes, or stands under the key `polyphi`, which others ignore.
Source: the published configurations; transformers' own conversion script.
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
"""Shape of one of our tensors, None where the checkpoint has no such one."""
_Sizes = TypeVar("_Sizes", DecoderConfig, VisionConfig, AudioConfig)


def _fill(kind: type[_Sizes], *sources: Mapping[str, Any]) -> _Sizes:
    """A configuration from several sources, later ones first; keys that are no field of it belong to others."""
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {}
    for source in sources:
        values |= {k: v for k, v in source.items() if k in known and v is not None}
    return kind(**values)


def parse(
    written: Mapping[str, Any],
    layout: str,
    *,
    generation: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    adapters: Mapping[str, AdapterConfig],
    shape: Shape,
) -> ModelConfig:
    """Sizes from config.json (`written`), generation_config.json and preprocessor_config.json, which may be empty, and
    from tensors' shapes. Raises ValueError for models of another kind."""
    own = written.get("polyphi", {})
    decoder = _parse_decoder(written, generation, shape)
    if layout == "mini":
        return ModelConfig(decoder, None, None, dict(adapters))
    if layout == "native":
        said_vision, said_audio = written.get("vision_config"), written.get("audio_config")
    else:
        said_vision = (written.get("embd_layer") or {}).get("image_embd_layer")
        said_audio = (written.get("audio_processor") or {}).get("config")
        said_audio = said_audio and _original_audio(said_audio)
    vision = audio = None
    if said_vision or shape("vision.encoder.patch_embedding.weight"):
        said = {"max_crops": preprocessor.get("dynamic_hd"), **(said_vision or {})}
        vision = _fill(VisionConfig, _vision_sizes(shape), said, own.get("vision", {}))
        _check_vision_heads(vision)
    if said_audio or shape("audio.encoder.global_mean"):
        audio = _fill(AudioConfig, _audio_sizes(shape), said_audio or {}, own.get("audio", {}))
    return ModelConfig(decoder, vision, audio, dict(adapters))


def _check_vision_heads(config: VisionConfig) -> None:
    """Raises ValueError where the vision encoder's width isn't a multiple of its number of heads."""
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads:
        raise ValueError(
            f"the vision encoder's hidden_size {width} must be a multiple of its num_attention_heads, found {heads}; "
            "Microsoft's layout always means 16 heads unless config.json has another number under polyphi.vision"
        )


def _parse_decoder(
    written: Mapping[str, Any], generation: Mapping[str, Any], shape: Shape
) -> DecoderConfig:
    rope = {**(written.get("rope_parameters") or {}), **(written.get("rope_scaling") or {})}
    moved = (
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    )  # transformers 5 nests them
    given = {**{k: rope[k] for k in moved if k in rope}, **written}
    heads = given.get("num_attention_heads")
    if heads is None:
        raise ValueError(
            "config.json does not say num_attention_heads, and no tensor's shape can tell it"
        )
    if given.get("tie_word_embeddings") is False:
        raise ValueError(
            "config.json says tie_word_embeddings false; the Phi-4 models tie head and embedding"
        )
    # transformers' class defaults, which its config.json files may leave out
    given.setdefault("partial_rotary_factor", 1.0)
    eos = generation.get("eos_token_id", given.get("eos_token_id"))
    if eos is not None:
        given["eos_token_ids"] = (eos,) if isinstance(eos, int) else tuple(eos)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in {"longrope", "su", "default"}:
        raise ValueError(f"config.json asks for rope type {kind!r}; expected longrope, or none")
    for table in ("short_factor", "long_factor"):
        given[table] = tuple(float(x) for x in rope.get(table, ()))

    inferred: dict[str, Any] = {}
    if embedding := shape("decoder.embed_tokens.weight"):
        inferred["vocab_size"], inferred["hidden_size"] = embedding
    if down := shape("decoder.layers.0.mlp.down_proj.weight"):
        inferred["intermediate_size"] = down[1]
    if layers := _count(shape, "decoder.layers.{}.input_layernorm.weight"):
        inferred["num_hidden_layers"] = layers
    if qkv := shape("decoder.layers.0.self_attn.qkv_proj.weight"):
        head = given.get("hidden_size", qkv[1]) // heads
        inferred["num_key_value_heads"] = (qkv[0] // head - heads) // 2
    config = replace(
        _fill(DecoderConfig, inferred, given), sliding_window=given.get("sliding_window")
    )
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        raise ValueError(
            f"config.json asks for a sliding window of {config.sliding_window} tokens within "
            f"{config.max_position_embeddings}; only full attention is supported, as in the Phi-4 models"
        )
    half = config.rotary_dim // 2
    if kind == "default":  # one plain table: all factors 1 and no switch
        plain = (1.0,) * half
        limit = config.max_position_embeddings
        return replace(
            config, short_factor=plain, long_factor=plain, original_max_position_embeddings=limit
        )
    found = len(config.short_factor), len(config.long_factor)
    if found != (half, half):
        raise ValueError(
            f"LongRoPE tables need {half} factors for {config.rotary_dim} rotated channels, found {found[0]} short and "
            f"{found[1]} long"
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
"""Field -> the tensor and axis that tell it, where config.json doesn't (the original layout's never tells vision)."""


def _from_shapes(table: Mapping[str, tuple[str, int]], shape: Shape) -> dict[str, Any]:
    sizes = {}
    for field, (ours, axis) in table.items():
        found = shape(ours)
        if found is not None and len(found) > axis:
            sizes[field] = found[axis]
    return sizes


def _vision_sizes(shape: Shape) -> dict[str, Any]:
    sizes = _from_shapes(_VISION_SHAPES, shape)
    if layers := _count(shape, "vision.encoder.layers.{}.layer_norm1.weight"):
        sizes["num_hidden_layers"] = layers
    places = shape("vision.encoder.position_embedding.weight")
    if places and "patch_size" in sizes:
        sizes["crop_size"] = math.isqrt(places[0]) * sizes["patch_size"]
    # No shape gives the number of heads. VisionConfig's default holds: Microsoft's code builds the tower with 16 heads
    # whatever its width is, and 16 is the default of transformers' configuration too.
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


def _original_audio(said: Mapping[str, Any]) -> dict[str, Any]:
    values = {ours: said.get(theirs) for ours, theirs in _ORIGINAL_AUDIO.items()}
    values |= {key: said.get(key) for key in _SAME_AUDIO}
    values["nemo_conv_channels"] = (said.get("nemo_conv_settings") or {}).get("conv_channels")
    values["bias_max_distance"] = (said.get("relative_attention_bias_args") or {}).get(
        "t5_bias_max_distance"
    )
    return values


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(config: ModelConfig, layout: str) -> dict[str, Any]:
    """The config.json of a layout. What it has no key for stands under `polyphi`, which other readers ignore."""
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


def _native_towers(config: ModelConfig) -> dict[str, Any]:
    written: dict[str, Any] = {"vision_config": None, "audio_config": None, "polyphi": {}}
    if config.vision:
        said = asdict(config.vision)
        written["polyphi"]["vision"] = {"max_crops": said.pop("max_crops")}
        written["vision_config"] = {
            "model_type": "phi4_multimodal_vision",
            "feature_layer": -2,
            "image_size": config.vision.crop_size,
            **said,
        }
    if config.audio:
        said = asdict(config.audio)
        written["polyphi"]["audio"] = {"window": said.pop("window")}
        written["audio_config"] = {"model_type": "phi4_multimodal_audio", **said}
    return written


def _original_towers(config: ModelConfig) -> dict[str, Any]:
    written: dict[str, Any] = {"embd_layer": {"embedding_cls": "image_audio"}, "polyphi": {}}
    if config.vision:
        written["polyphi"]["vision"] = asdict(config.vision)
        written["embd_layer"]["image_embd_layer"] = {
            "crop_size": config.vision.crop_size,
            "embedding_cls": "tune_image",
            "hd_transform_order": "sub_glb",
            "image_token_compression_cls": "avg_pool_2d",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        }
    if config.audio:
        said = asdict(config.audio)
        written["polyphi"]["audio"] = said
        written["embd_layer"]["audio_embd_layer"] = {
            "compression_rate": config.audio.time_reduction,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        }
        encoder = {theirs: said[ours] for ours, theirs in _ORIGINAL_AUDIO.items()} | {
            k: said[k] for k in _SAME_AUDIO
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
            "nemo_conv_settings": {"conv_channels": config.audio.nemo_conv_channels},
            "relative_attention_bias_args": {
                "type": "t5",
                "t5_bias_max_distance": config.audio.bias_max_distance,
            },
        }
        written["audio_processor"] = {"name": "cascades", "config": encoder}
    for name, adapter in config.adapters.items():
        written[f"{name}_lora"] = {
            "r": adapter.rank,
            "lora_alpha": whole_number(adapter.alpha),
            "dp": adapter.dropout,
            "layer": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
        }
    return written
