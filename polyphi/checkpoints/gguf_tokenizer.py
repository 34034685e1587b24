"""The tokenizer of a GGUF from its vocabulary: byte-level BPE with a known split of texts.

>>> tokenizer = tokenizer_of(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), reader.fields)

Source: llama.cpp's names of splits (`tokenizer.ggml.pre`) and of types of tokens; the published tokenizer.json files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from polyphi.checkpoints.adapter_config import describe
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import CONTROLS, O200K_SPLIT, added_token, pre_tokenizer

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Types of tokens: added ones that are special, other added ones, and rows without a token."""
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-4o": pre_tokenizer(O200K_SPLIT),
    "llama-bpe": pre_tokenizer(LLAMA3_SPLIT),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}
"""`tokenizer.ggml.pre` -> how texts are split before merges."""


def split_name(specification: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the split in the content of a tokenizer.json, None where it has none."""

    def without_offsets(step: Any) -> Any:
        if isinstance(step, list):
            return [without_offsets(one) for one in step]
        if isinstance(step, dict):
            return {k: without_offsets(v) for k, v in step.items() if k != "trim_offsets"}
        return step

    own = without_offsets(specification.get("pre_tokenizer"))
    for name, split in SPLITS.items():
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = split
        if without_offsets(json.loads(bpe.to_str())["pre_tokenizer"]) == own:
            return name
    return None


def tokenizer_of(source: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF, with its chat template. Raises ValueError for a vocabulary that isn't byte-level BPE,
    for an unknown split, and for unknown marks of a conversation."""

    def value(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    def strings(key: str) -> list[str]:
        texts = value(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{source}: expected {key} to be a list of texts, found another value")
        return texts

    name, split = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")
    if name != "gpt2" or not isinstance(split, str) or split not in SPLITS:
        raise ValueError(
            f"{source} has a vocabulary of the type {describe(name)} with the split {describe(split)}; expected gpt2 "
            f"with {', '.join(SPLITS)}, or the tokenizer files of the original checkpoint in its folder"
        )
    texts, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
    types = value("tokenizer.ggml.token_type", [])
    if not isinstance(types, list) or len(types) != len(texts):
        raise ValueError(
            f"{source}: expected tokenizer.ggml.token_type to have a type for each of {len(texts):,} tokens, found "
            f"{describe(types)}"
        )
    template = value("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise ValueError(
            f"{source}: expected tokenizer.chat_template to be a text, found {describe(template)}"
        )
    bpe = tokenizers.Tokenizer(models.BPE(ignore_merges=split != "smollm"))
    bpe.pre_tokenizer, bpe.decoder = SPLITS[split], decoders.ByteLevel()
    spec = json.loads(bpe.to_str())
    vocabulary = {text: id for id, text in enumerate(texts) if types[id] != UNUSED}
    spec["model"] |= {"vocab": vocabulary, "merges": [pair.split(" ") for pair in merges]}
    spec["added_tokens"] = [
        added_token(text, id, types[id] == CONTROL, text in CONTROLS and CONTROLS[text][2])
        for id, text in enumerate(texts)
        if types[id] in (CONTROL, USER_DEFINED)
    ]
    try:
        return Tokenizer(spec, template)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
