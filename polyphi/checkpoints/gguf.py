"""GGUF, llama.cpp's format: converts language models of Phi-4-mini's architecture (`phi3`) to checkpoints.

>>> convert("Phi-4-mini-Q4_0.gguf", "phi-mini", quant="int4")

Weights may have any type that the `gguf` package supports. They are dequantized, and quantized again with `quant`. Only
Q4_0 (a float for each 32 inputs, times -8 to 7) is converted to our 4 bits directly: it has the same 16 steps, and only
its floats lose precision, as they become 8-bit factors of the largest one of their output. A GGUF's vocabulary isn't
converted to a tokenizer: its files are copied from the folder of the GGUF.

Source: the names of this architecture's tensors and keys in llama.cpp's converter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyphi.checkpoints.files import inside
from polyphi.checkpoints.names import tensor_names
from polyphi.checkpoints.read import TOKENIZER_FILES
from polyphi.checkpoints.write import write_checkpoint
from polyphi.kernels import linear as native
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.quantization.integer_weights import Pieces
from polyphi.runtime.installation import pip_install

ARCHITECTURE = "phi3"
NAMES = {
    "decoder.embed_tokens.weight": "token_embd.weight",
    "decoder.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""Our names -> llama.cpp's, for a layer without its number. Gate rows come first there too, and heads are rotated in
halves like ours, so the order of rows is the same."""


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    quant: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a checkpoint of a GGUF's language model, in the layout `mini` or quantized. Raises ValueError for a file
    with another model, without a tokenizer in its folder, or without the `gguf` package."""
    source = Path(source)
    fields, tensors = _open(source)
    files = inside(source.parent, (source.parent / name for name in TOKENIZER_FILES))
    if not (source.parent / "tokenizer.json").is_file():
        raise ValueError(
            f"expected tokenizer.json next to {source}: the vocabulary of a GGUF isn't used; copy the tokenizer files "
            "of the original checkpoint to its folder"
        )
    config = _config(source, fields, tensors)
    public_names = {
        ours: _gguf_name(ours) for ours in (e.ours for e in tensor_names(config, "mini").values())
    }
    if missing := sorted(name for name in public_names.values() if name not in tensors):
        raise ValueError(
            f"{source} has no {missing[0]} (and {len(missing) - 1} more of {len(public_names)} tensors are missing)"
        )
    expected = {*public_names.values(), "rope_factors_long.weight", "rope_factors_short.weight"}
    if unknown := sorted(set(tensors) - expected):
        raise ValueError(
            f"{source} has {unknown[0]} (and {len(unknown) - 1} more), which Phi-4-mini doesn't have"
        )

    def tensor(ours: str) -> Tensor | Pieces:
        stored = tensors[public_names[ours]]
        if quant and quant.startswith("int4") and stored.tensor_type.name == "Q4_0":
            return _four_bits(stored)
        return _dequantized(stored)

    write_checkpoint(config, tensor, folder, "mini", dtype=dtype, quant=quant, files=files)


def _open(source: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The keys and tensors of a file, of which only the header is read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(
            f"reading GGUF files needs the gguf package: {pip_install('gguf')}"
        ) from None
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{source} is not a complete GGUF file: {error}") from error
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


def _config(source: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    key = "general.architecture"
    architecture = fields[key].contents() if key in fields else None
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"{source} has the architecture {architecture!r}; expected {ARCHITECTURE!r}, that of Phi-4-mini"
        )

    def value(key: str, default: Any = None) -> Any:
        if key in fields:
            return fields[key].contents()
        if default is None:
            raise ValueError(f"{source} has no key {key}")
        return default

    def ours(key: str, default: Any = None) -> Any:
        return value(f"{ARCHITECTURE}.{key}", default)

    if "token_embd.weight" not in tensors:
        raise ValueError(f"{source} has no token_embd.weight")
    width, heads = ours("embedding_length"), ours("attention.head_count")
    rotated, context = ours("rope.dimension_count"), ours("context_length")
    factors = {
        name: tuple(_dequantized(tensors[name_of]).tolist()) if name_of in tensors else ()
        for name in ("short", "long")
        for name_of in (f"rope_factors_{name}.weight",)
    }
    plain = (1.0,) * (rotated // 2)
    window = ours("attention.sliding_window", 0)
    if 0 < window < context:
        raise ValueError(
            f"{source} has a sliding window of {window} tokens within {context}; only full attention is "
            "supported, as in Phi-4-mini"
        )
    default = DecoderConfig()
    eos = value("tokenizer.ggml.eos_token_id", default.eos_token_ids[0])
    turn = value("tokenizer.ggml.eot_token_id", eos)
    decoder = DecoderConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=width,
        intermediate_size=ours("feed_forward_length"),
        num_hidden_layers=ours("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=ours("attention.head_count_kv", heads),
        rms_norm_eps=ours("attention.layer_norm_rms_epsilon"),
        rope_theta=ours("rope.freq_base", 10000.0),
        partial_rotary_factor=rotated / (width // heads),
        max_position_embeddings=context,
        original_max_position_embeddings=ours("rope.scaling.original_context_length", context),
        short_factor=factors["short"] or plain,
        long_factor=factors["long"] or plain,
        sliding_window=None,
        bos_token_id=value("tokenizer.ggml.bos_token_id", default.bos_token_id),
        pad_token_id=value("tokenizer.ggml.padding_token_id", default.pad_token_id),
        eos_token_ids=tuple(dict.fromkeys((turn, eos))),
    )
    return ModelConfig(decoder, None, None, {})


def _gguf_name(ours: str) -> str:
    if ours in NAMES:
        return NAMES[ours]
    _, _, number, name = ours.split(".", maxsplit=3)
    return f"blk.{number}.{NAMES[name]}"


def _dequantized(tensor: Any) -> Tensor:
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def _four_bits(tensor: Any) -> Pieces:
    """Q4_0 in our 4 bits: of 32 inputs in 18 bytes, a float16 d, and q of 0 to 15 (input i in the low half of byte i,
    input 16 + i in the high one) for d * (q - 8). Where d is negative it is -d * ((15 - q) - 7)."""
    blocks = torch.from_numpy(tensor.data.copy()).view(len(tensor.data), -1, 18)
    d = blocks[..., :2].contiguous().view(torch.float16).float().squeeze(-1)
    q = torch.cat([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], 2)
    negative = d < 0
    q = torch.where(negative[..., None], 15 - q, q).flatten(1)
    row = (d.abs().amax(1) / 255).clamp(min=1e-30)
    s = (d.abs() / row[:, None]).round().byte()
    z = torch.where(negative, 16 * 7, 16 * 8).byte()
    return {"q4": native.pack4(native.Four(q, s, z)), "row": row}
