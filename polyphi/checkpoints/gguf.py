"""GGUF, llama.cpp's format: converts language models of Phi-4-mini's architecture (`phi3`) and of Llama's (`llama`) to
checkpoints.

>>> convert("Phi-4-mini-Q4_0.gguf", "phi-mini", quant="int4")

Weights may have any type that the `gguf` package supports. They are dequantized, and quantized again with `quant`. Only
Q4_0 (a float for each 32 inputs, times -8 to 7) is converted to our 4 bits directly: it has the same 16 steps, and only
its floats lose precision, as they become 8-bit factors of the largest one of their output. The tokenizer is that in
the folder of the GGUF, or else comes from its vocabulary (gguf_tokenizer.py).

Source: the names of tensors and keys of both architectures in llama.cpp's converter.
"""

import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.checkpoints import config as config_json
from polyphi.checkpoints.adapter_config import describe
from polyphi.checkpoints.files import inside
from polyphi.checkpoints.gguf_tokenizer import tokenizer_of
from polyphi.checkpoints.headers import TOKENIZER_FILES
from polyphi.checkpoints.names import tensor_names
from polyphi.checkpoints.write import write_checkpoint
from polyphi.kernels import linear as native
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.integer_weights import LEVELS, Pieces
from polyphi.runtime.installation import pip_install

ARCHITECTURES = {"phi3": "mini", "llama": "llama"}
"""`general.architecture` -> the layout that the checkpoint gets."""
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a key's value -> its bytes, but for those of other lengths:"""
TEXT, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MAX_ITEMS = 1 << 22
"""Keys, tensors and items of lists in a file together; four lists of a vocabulary of 200,064 have a fifth of them."""
LICENCE = re.compile(r"[\w.+-]{1,64}")
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""Names of the layouts mini and llama -> llama.cpp's, for a layer without its number. Gate rows come first in `phi3`
too, and its heads are rotated in halves like ours, so the order of rows is the same. In `llama` neighbouring channels
of queries and keys are rotated together (`in_halves`)."""
ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")
"""Tensors by whose values the frequencies of positions are divided: LongRoPE's, and Llama 3's."""


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a GGUF file, of which only the header is read. `layout` is that of its checkpoint."""

    source: Path
    config: ModelConfig
    layout: str
    _fields: Mapping[str, Any]
    _stored: Mapping[str, Any]
    _names: Mapping[
        str, list[str]
    ]  # our name -> llama.cpp's, in the order in which they are joined

    def tensor(self, ours: str) -> Tensor:
        """The values of a tensor by our name, dequantized to float32."""
        parts = []
        for name in self._names[ours]:
            part = _dequantized(self._stored[name])
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                part = in_halves(part, self.config.decoder.head_dim)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def levels(self, ours: str) -> Pieces | None:
        """A tensor whose 16 levels are those of our 4 bits, as they are stored; None for any other one."""
        (first, *others) = self._names[ours]
        has_our_levels = not others and self._stored[first].tensor_type.name == "Q4_0"
        return _four_bits(self._stored[first]) if has_our_levels else None

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors by our names."""
        return {name: self.tensor(name).to(dtype) for name in self._names}

    @property
    def licence(self) -> str:
        """The licence that the file states for its model, such as "apache-2.0"; "" for none or another text."""
        field = self._fields.get("general.license")
        text = str(field.contents()) if field is not None else ""
        return text if LICENCE.fullmatch(text) else ""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder of the file, or else that of its vocabulary."""
        if (self.source.parent / "tokenizer.json").is_file():
            return Tokenizer.load(self.source.parent)
        return tokenizer_of(self.source, self._fields)


def open_model(source: Path) -> LanguageModel:
    """The language model of a GGUF file. Raises ValueError for a file with another model or other tensors, and without
    the `gguf` package."""
    fields, tensors = _open(source)
    config = _config(source, fields, tensors)
    layout = ARCHITECTURES[_architecture(source, fields)]
    shapes: dict[str, tuple[int, ...]] = {}
    names: dict[str, list[str]] = {}
    for public, entry in tensor_names(config, layout).items():
        shapes[name := gguf_name(public)] = entry.shape
        names.setdefault(entry.ours, []).append(name)
    if missing := sorted(name for name in shapes if name not in tensors):
        raise ValueError(
            f"{source} has no {missing[0]} (and {len(missing) - 1} more of {len(shapes)} tensors are missing)"
        )
    if unknown := sorted(set(tensors) - {*shapes, *ROPE_FACTORS}):
        raise ValueError(
            f"{source} has {unknown[0]} (and {len(unknown) - 1} more), which its architecture doesn't have"
        )
    for name, shape in shapes.items():
        if (stored := tuple(map(int, reversed(tensors[name].shape)))) != shape:
            raise ValueError(f"{source}: expected {name} with the shape {shape}, found {stored}")
    return LanguageModel(source, config, layout, fields, tensors, names)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    quant: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> str:
    """Write a checkpoint of a GGUF's language model, in the layout `mini` or `llama`, which is returned, or quantized.
    Raises ValueError as `open_model`, and for a file without a known vocabulary or a tokenizer in its folder."""
    model = open_model(Path(source))

    def tensor(ours: str) -> Tensor | Pieces:
        levels = model.levels(ours) if quant and quant.startswith("int4") else None
        return model.tensor(ours) if levels is None else levels

    with tempfile.TemporaryDirectory() as work:
        beside = model.source.parent
        files = inside(beside, (beside / name for name in TOKENIZER_FILES))
        if not (beside / "tokenizer.json").is_file():
            model.tokenizer().save(work)
            files = list(Path(work).iterdir())
        write_checkpoint(
            model.config, tensor, folder, model.layout, dtype=dtype, quant=quant, files=files
        )
    return model.layout


class _Header:
    """Walks over the header of a GGUF. Every number of bytes or items is compared with what is left of the file before
    it is followed: the library would loop over 2^40 items that a file of a hundred bytes promises."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._order = file, size, "<"
        self._items = MAX_ITEMS

    def check(self) -> None:
        """Raise ValueError for a header that promises more than the file holds."""
        if self._read(4) != b"GGUF":
            raise ValueError("it doesn't begin with GGUF")
        if self._number("I") & 0xFFFF == 0:  # the version of a big-endian file
            self._order = ">"
        tensors, keys = self._count("Q", 24), self._count("Q", 13)
        for _ in range(keys):
            self._text()
            self._value(self._number("I"))
        for _ in range(tensors):
            self._text()
            dimensions = self._number("I")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions:,} dimensions")
            if (elements := prod(self._number("Q") for _ in range(dimensions))) > 8 * self._size:
                raise ValueError(f"a tensor of {elements:,} elements is larger than the file")
            self._skip(4 + 8)  # its type and its position

    def _value(self, type_: int) -> None:
        if type_ == TEXT:
            self._text()
        elif type_ != ARRAY:
            self._skip(self._bytes_of(type_))
        elif (of := self._number("I")) == TEXT:
            for _ in range(self._count("Q", 8)):
                self._text()
        else:
            width = self._bytes_of(of)
            self._skip(self._count("Q", width) * width)

    def _bytes_of(self, type_: int) -> int:
        if type_ not in VALUE_BYTES:
            raise ValueError(f"a key has the unknown type {type_}")
        return VALUE_BYTES[type_]

    def _count(self, format: str, width: int) -> int:
        """A number of items of at least `width` bytes."""
        count = self._number(format)
        self._items -= count
        if count * width > self._left() or self._items < 0:
            raise ValueError(f"{count:,} items are more than the file can hold or a model has")
        return count

    def _text(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, format: str) -> int:
        (value,) = struct.unpack(
            f"{self._order}{format}", self._read(struct.calcsize(f"<{format}"))
        )
        return int(value)

    def _read(self, count: int) -> bytes:
        if count > self._left():
            raise ValueError(f"it has {self._left():,} more bytes where {count:,} are promised")
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if count > self._left():
            raise ValueError(f"it has {self._left():,} more bytes where {count:,} are promised")
        self._file.seek(count, 1)

    def _left(self) -> int:
        return self._size - self._file.tell()


def _open(source: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The keys and tensors of a file, of which only the header is read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(
            f"reading GGUF files needs the gguf package: {pip_install('gguf')}"
        ) from None
    try:
        with source.open("rb") as file:
            _Header(file, source.stat().st_size).check()
        reader = GGUFReader(source)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{source} is not a complete GGUF file: {error}") from error
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


def _architecture(source: Path, fields: Mapping[str, Any]) -> str:
    key = "general.architecture"
    architecture = fields[key].contents() if key in fields else None
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{source} has the architecture {describe(architecture)}; expected phi3, that of Phi-4-mini, or llama"
        )
    return architecture


def _config(source: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    architecture = _architecture(source, fields)

    def value(key: str, default: Any = None) -> tuple[str, Any]:
        if key not in fields and default is None:
            raise ValueError(f"{source} has no key {key}")
        return f"{key} of {source}", fields[key].contents() if key in fields else default

    def ours(key: str, default: Any = None) -> tuple[str, Any]:
        return value(f"{architecture}.{key}", default)

    def size(name: str, key: str) -> int:
        checked: int = config_json.checked(*ours(key), name, int)
        return checked

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{source} has no matrix token_embd.weight")
    width = size("hidden_size", "embedding_length")
    heads = size("num_attention_heads", "attention.head_count")
    _, head_dim = ours("attention.key_length", width // max(1, heads))
    head_dim = config_json.checked("attention.key_length", head_dim, "attention_head_dim", int)
    rotated = config_json.checked(
        *ours("rope.dimension_count", head_dim), "attention_head_dim", int
    )
    context = size("max_position_embeddings", "context_length")
    if architecture == "llama":
        if (experts := ours("expert_count", 0)[1]) != 0:
            raise ValueError(f"{source} has {experts} experts; expected a model without experts")
        scaling = ours("rope.scaling.type", "none")[1]
        if scaling not in ("none", "longrope"):
            raise ValueError(
                f"{source} has the rope scaling {describe(scaling)}; expected none, longrope, or Llama 3's factors"
            )
    factors = {}
    for length in ("short", "long"):
        names = (f"rope_factors_{length}.weight", "rope_freqs.weight")
        name = next((name for name in names if name in tensors), "")
        values = _dequantized(tensors[name]).tolist() if name else (1.0,) * (rotated // 2)
        factors[f"{length}_factor"] = (name, values)
    _, window = ours("attention.sliding_window", 0)
    if isinstance(window, int) and 0 < window < context:
        raise ValueError(
            f"{source} has a sliding window of {window} tokens within {context}; only full attention is "
            "supported, as in Phi-4-mini"
        )
    default = DecoderConfig()
    key, eos = value("tokenizer.ggml.eos_token_id", default.eos_token_ids[0])
    _, turn = value("tokenizer.ggml.eot_token_id", eos)
    decoder = config_json.fill(
        DecoderConfig,
        {
            **factors,
            "vocab_size": ("the number of rows of token_embd.weight", int(embedding.shape[1])),
            "hidden_size": ("", width),
            "intermediate_size": ours("feed_forward_length"),
            "num_hidden_layers": ours("block_count"),
            "num_attention_heads": ("", heads),
            "num_key_value_heads": ours("attention.head_count_kv", heads),
            "rms_norm_eps": ours("attention.layer_norm_rms_epsilon"),
            "rope_theta": ours("rope.freq_base", 10000.0),
            "partial_rotary_factor": (
                f"the share of rotated channels in {source}",
                rotated / head_dim,
            ),
            "attention_head_dim": ("", None if head_dim * heads == width else head_dim),
            "max_position_embeddings": ("", context),
            "original_max_position_embeddings": ours(
                "rope.scaling.original_context_length", context
            ),
            "bos_token_id": value("tokenizer.ggml.bos_token_id", default.bos_token_id),
            "pad_token_id": value("tokenizer.ggml.padding_token_id", default.pad_token_id),
            "eos_token_ids": (key, [turn] if turn == eos else [turn, eos]),
        },
    )
    config_json.check_heads(decoder)
    tied = "output.weight" not in tensors
    decoder = replace(decoder, sliding_window=None, tie_word_embeddings=tied)
    return ModelConfig(decoder, None, None, {})


def gguf_name(public: str) -> str:
    """llama.cpp's name of a tensor of the layouts mini and llama."""
    if public in NAMES:
        return NAMES[public]
    _, _, number, name = public.split(".", maxsplit=3)
    return f"blk.{number}.{NAMES[name]}"


def in_halves(weight: Float[Tensor, "O I"], head_dim: int) -> Float[Tensor, "O I"]:
    """Queries or keys whose heads llama.cpp rotates by pairs of neighbouring channels, for a rotation of the first half
    with the second."""
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def in_pairs(weight: Float[Tensor, "O I"], head_dim: int) -> Float[Tensor, "O I"]:
    """The inverse of `in_halves`."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def _dequantized(tensor: Any) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise ValueError(
            f"{tensor.name} has the type {tensor.tensor_type.name}, which the gguf package can't read"
        ) from None
    return torch.from_numpy(values.copy())


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
    return {LEVELS.piece: native.pack4(native.Int4Weight(q, s, z)), "row": row}
