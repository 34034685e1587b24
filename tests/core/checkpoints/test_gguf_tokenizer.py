"""The tokenizer of a GGUF comes from known vocabularies only, whatever the file's keys have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polyphi.checkpoints.gguf_tokenizer import tokenizer_of

BYTES = [chr(0x100 + byte) for byte in range(256)]
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@dataclass
class Field:
    value: Any

    def contents(self) -> Any:
        return self.value


def fields(**changes: Any) -> dict[str, Field]:
    """The keys of a small ChatML vocabulary."""
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": ["a", "b", "ab", *CONTROLS],
        "token_type": [1, 1, 1, 3, 3, 3],
        "merges": ["a b"],
    }
    return {f"tokenizer.ggml.{key}": Field(value) for key, value in {**values, **changes}.items()}


def test_a_vocabulary() -> None:
    tokenizer = tokenizer_of(Path("a.gguf"), fields())
    assert tokenizer.encode("ab") == [2] and tokenizer.control("<|im_end|>") == 4
    assert tokenizer.marks.name == "ChatML" and tokenizer.eos_ids == (4, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "llama"),
        ("model", 3),
        ("pre", "qwen2"),
        ("pre", ["smollm"]),
        ("tokens", [1, 2, 3, 4, 5, 6]),
        ("tokens", "text"),
        ("merges", [1]),
        ("merges", ["a c"]),
        ("token_type", [1]),
        ("token_type", 7),
        ("token_type", [1] * 6),
    ],
)
def test_other_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.gguf"):
        tokenizer_of(Path("a.gguf"), fields(**{key: value}))


@pytest.mark.parametrize("template", [7, "{{ messages }}"])
def test_other_templates_are_refused(template: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.gguf.*template"):
        tokenizer_of(Path("a.gguf"), {**fields(), "tokenizer.chat_template": Field(template)})
