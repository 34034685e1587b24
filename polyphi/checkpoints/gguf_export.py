"""GGUF export: the language model in llama.cpp's format, with its tokenizer and chat template, in one file.

>>> write_gguf(model, "phi.gguf", "path/to/folder", quant="q8_0")

llama.cpp runs the language model alone; encoders and adapters are left out (merge an adapter first: `merge_adapter`).
Norms and the factors of positions are float32, and a tied head is the embedding, as in Phi-4-mini's published GGUF
files. The architecture is phi3, or llama for a model with whole rotated heads and a single table of positions.

Source: the keys of both architectures in llama.cpp's converter (conversion/phi.py, llama.py); its src/models/phi3.cpp.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyphi.checkpoints.gguf import ARCHITECTURES, gguf_name, in_pairs
from polyphi.checkpoints.gguf_tokenizer import split_name
from polyphi.checkpoints.names import is_llama, tensor_names
from polyphi.model.config import DecoderConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.conversation import PHI4
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import CHAT_TEMPLATE, read_chat_template
from polyphi.runtime.files import whole_file
from polyphi.runtime.installation import pip_install


@dataclass(frozen=True)
class FileType:
    """llama.cpp's name of a file type, and the types of its tensors: of a layer's matrices, and of the embedding."""

    name: str
    matrix: str
    embedding: str


FLOATS = {
    torch.float32: FileType("ALL_F32", "F32", "F32"),
    torch.float16: FileType("MOSTLY_F16", "F16", "F16"),
    torch.bfloat16: FileType("MOSTLY_BF16", "BF16", "BF16"),
}
QUANTS = {
    "q8_0": FileType("MOSTLY_Q8_0", "Q8_0", "Q8_0"),
    # The embedding, which is the head, loses most in 4 bits.
    "q4_0": FileType("MOSTLY_Q4_0", "Q4_0", "Q8_0"),
}
"""The quantized types that the `gguf` package writes and our reader reads. For others there is llama-quantize."""
BLOCK = 32
"""Inputs that share a scale in both of `QUANTS`."""
PRE_TOKENIZER = "gpt-4o"
"""llama.cpp's name of o200k_base's split. Vocabularies trained here split digits, and words from the space before them:
they have no tokens across these boundaries, so that merges within o200k_base's longer pieces give the same tokens."""
_REFUSED_NAME = re.compile(r"phi-?3", re.IGNORECASE)
"""llama.cpp expects Phi-3's vocabulary in a file whose `general.name` has one of these, and can't load another one."""
_ROWS = 4096
"""Rows that are converted at once: the embedding in float32 would have 2.5 GB."""


def write_gguf(
    model: PhiModel,
    path: str | Path,
    tokenizer_folder: str | Path,
    *,
    name: str = "polyphi",
    dtype: torch.dtype | None = None,
    quant: str | None = None,
) -> None:
    """Write the language model of an unquantized model as a GGUF file, which replaces `path` once it is complete. The
    tokenizer and its chat template come from `tokenizer_folder`; `name` is that of the model in the file. `dtype` is
    that of matrices (default: as stored), `quant` one of `QUANTS` instead. One tensor at a time is converted.

    Raises ValueError without the `gguf` package, for a quantized model, for an unknown `quant` or dtype, for a width
    that `quant` can't divide into blocks, and for a tokenizer with a split that llama.cpp doesn't have."""
    path, config = Path(path), model.config.decoder
    if model.quant is not None:
        raise ValueError(
            f"a model quantized to {model.quant} can't be written as GGUF: export the unquantized checkpoint"
        )
    file_type = _file_type(dtype or model.decoder.embed_tokens.weight.dtype, quant)
    if quant and (odd := [n for n in (config.hidden_size, config.intermediate_size) if n % BLOCK]):
        raise ValueError(
            f"{quant} has blocks of {BLOCK} inputs, and a width of this model is {odd[0]}; omit --quant"
        )
    tokenizer_folder = Path(tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder).within(config.vocab_size)
    split = PRE_TOKENIZER if tokenizer.slices.known_split else split_name(tokenizer.specification)
    if split is None:
        raise ValueError(
            f"{tokenizer_folder / 'tokenizer.json'} splits text in another way than the tokenizers of Phi-4 "
            "(o200k_base), Llama 3 and SmolLM2, which llama.cpp has; expected one of these, or one that polyphi trained"
        )
    state = model.state_dict()
    text_model = replace(model.config.without_further(), vision=None, audio=None, adapters={})
    architecture = "llama" if is_llama(config) else "phi3"
    tensors = {}
    for public, entry in tensor_names(text_model, ARCHITECTURES[architecture]).items():
        tensor = state[entry.ours]
        tensor = tensor if entry.rows is None else tensor[slice(*entry.rows)]
        if public.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = in_pairs(tensor, config.head_dim)
        tensors[gguf_name(public)] = tensor
    if architecture == "phi3":
        for length, factors in (("long", config.long_factor), ("short", config.short_factor)):
            tensors[f"rope_factors_{length}.weight"] = torch.tensor(factors)
    elif set(config.short_factor) != {1.0}:
        tensors["rope_freqs.weight"] = torch.tensor(config.short_factor)
    library = _library()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        writer = library.GGUFWriter(partial, architecture)
        writer.add_name(_REFUSED_NAME.sub("phi 3", name))
        writer.add_file_type(library.LlamaFileType[file_type.name])
        if quant:
            writer.add_quantization_version(library.GGML_QUANT_VERSION)
        _add_sizes(writer, config)
        if architecture == "phi3":
            _add_positions(writer, config)
        template = _chat_template(tokenizer_folder, tokenizer)
        _add_tokenizer(writer, tokenizer, config, split, template)
        types = {key: _type(library, key, tensor, file_type) for key, tensor in tensors.items()}
        for key, tensor in tensors.items():
            block, width = library.GGML_QUANT_SIZES[types[key]]
            size = prod(tensor.shape) // block * width
            writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), size, types[key])
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key, tensor in tensors.items():
                writer.write_tensor_data(_converted(library, tensor, types[key]).view(_Values))
        finally:
            writer.close()


class _Values(np.ndarray):
    """An array that is written by `write`, whose error has the system's cause, such as a full disk; numpy's has only
    numbers of bytes."""

    def tofile(self, file: Any) -> None:  # type: ignore[override]
        file.write(np.ascontiguousarray(self).data)


def _library() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise ValueError(
            f"writing GGUF files needs the gguf package: {pip_install('gguf')}"
        ) from None
    return gguf


def _file_type(dtype: torch.dtype, quant: str | None) -> FileType:
    if quant is None and dtype in FLOATS:
        return FLOATS[dtype]
    if quant in QUANTS:
        return QUANTS[quant]
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    raise ValueError(
        f"expected a GGUF in {names}, or with quant={' or '.join(QUANTS)}; found {quant or dtype}. Other types: "
        "llama-quantize of llama.cpp makes them from a file in bfloat16"
    )


def _add_sizes(writer: Any, config: DecoderConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.attention_head_dim is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _add_positions(writer: Any, config: DecoderConfig) -> None:
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_rope_scaling_attn_factors(config.rope_scale)
    writer.add_sliding_window(0)  # full attention; without this key llama.cpp takes it for a Phi-3


def _add_tokenizer(
    writer: Any, tokenizer: Tokenizer, config: DecoderConfig, split: str, chat_template: str
) -> None:
    tokens, types = _tokens(tokenizer.specification, config.vocab_size)
    merges = tokenizer.specification["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config.bos_token_id)
    # The token that ends a turn comes first; the last one ends a text.
    writer.add_eot_token_id(config.eos_token_ids[0])
    writer.add_eos_token_id(config.eos_token_ids[-1])
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)


def _chat_template(folder: Path, tokenizer: Tokenizer) -> str:
    """The template in a tokenizer's folder, or the published one. A GGUF can't say that control tokens remove the
    whitespace after them, so the published template removes it where a message begins."""
    template = read_chat_template(folder) or (CHAT_TEMPLATE if tokenizer.marks is PHI4 else "")
    if template == CHAT_TEMPLATE:
        template = template.replace("message['content']", "message['content'].lstrip()")
    return template


def _tokens(specification: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The text and llama.cpp's type of each row of the embedding. Added tokens that aren't special, those of tools, are
    shown in answers, where clients look for them."""
    from gguf import TokenType

    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, id in specification["model"]["vocab"].items():
        tokens[id], types[id] = token, int(TokenType.NORMAL)
    for added in specification["added_tokens"]:
        special = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(special)
    return tokens, types


def _type(library: Any, name: str, tensor: Tensor, file_type: FileType) -> Any:
    if tensor.dim() == 1:
        return library.GGMLQuantizationType.F32
    is_embedding = name in (gguf_name("model.embed_tokens.weight"), gguf_name("lm_head.weight"))
    return library.GGMLQuantizationType[file_type.embedding if is_embedding else file_type.matrix]


def _converted(library: Any, tensor: Tensor, type_: Any) -> np.ndarray:
    """The values of a tensor in a type of GGUF, by its bytes where numpy doesn't have the type."""
    dtypes = {FLOATS[dtype].matrix: dtype for dtype in FLOATS}
    if type_.name in dtypes:
        values = tensor.detach().to("cpu", dtypes[type_.name]).contiguous()
        return values.view(torch.uint8).numpy()
    rows: Iterator[Tensor] = iter(tensor.detach().cpu().split(_ROWS))
    return np.concatenate([library.quants.quantize(part.float().numpy(), type_) for part in rows])
