"""Contents of a tokenizer.json: control tokens, the pre-tokenization of text, the chat template.

The published 200,064-token vocabulary and small ones trained here have the same form.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from polyphi.runtime.files import read_object

END_OF_TEXT, END, IMAGE, AUDIO = "<|endoftext|>", "<|end|>", "<|endoftext10|>", "<|endoftext11|>"
# in Microsoft's layout, then in that of transformers
IMAGE_NAMES, AUDIO_NAMES = (IMAGE, "<|image|>"), (AUDIO, "<|audio|>")

# Token -> (id in the published vocabulary, special, removes whitespace after it); from the published tokenizer_config.
CONTROLS: dict[str, tuple[int, bool, bool]] = {
    END_OF_TEXT: (199999, True, False),
    IMAGE: (200010, True, False),
    AUDIO: (200011, True, False),
    "<|endofprompt|>": (200018, True, False),
    "<|assistant|>": (200019, True, True),
    END: (200020, True, True),
    "<|user|>": (200021, True, True),
    "<|system|>": (200022, True, True),
    "<|tool|>": (200023, False, True),
    "<|/tool|>": (200024, False, True),
    "<|tool_call|>": (200025, False, True),
    "<|/tool_call|>": (200026, False, True),
    "<|tool_response|>": (200027, False, True),
    "<|tag|>": (200028, True, True),
}
REQUIRED = (
    END_OF_TEXT,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    END,
)  # needed for chats
SPARE = ("<|tag|>", "<|endofprompt|>")
"""Control tokens that no conversation has."""
MAX_ID = (1 << 24) - 1
"""The largest id that is read; lists are as long as the largest one of a vocabulary."""
ALIGNMENT = 64  # embedding rows come in multiples of 64

# Pre-tokenization of o200k_base: words with the space before them, one to three digits, signs, line ends.
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_SHORT}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# A small model is far better at sums with single digits than with three at a time: our vocabularies split digits.
DIGIT_SPLIT = O200K_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# Words without the space before them: the same token after a space, at the start of an answer and in quotes. A small
# model copies and translates them better, at the cost of more tokens per text.
WORD_SPLIT = DIGIT_SPLIT.replace(r"[^\r\n\p{L}\p{N}]?", "")

# The published chat template: tools sit on the system message, as JSON text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
# That of Phi-4-mini-reasoning: a fixed text and all system messages are one turn before the others.
_FIXED_SYSTEM_START, _FIXED_SYSTEM_REST = (
    "{{ '<|system|>",
    "' }}{% for message in messages %}{% if message['role'] == 'system' %} {{ message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
)


def chat_template(fixed_system: str | None) -> str:
    """Return the published chat template, or that of Phi-4-mini-reasoning with `fixed_system` as its text."""
    if fixed_system is None:
        return CHAT_TEMPLATE
    return f"{_FIXED_SYSTEM_START}{fixed_system}{_FIXED_SYSTEM_REST}"


def parse_fixed_system(template: str) -> str | None:
    """Return the text at the beginning of every conversation in a chat template of the form of Phi-4-mini-reasoning's;
    None for other templates. No template is run."""
    template = template.strip()
    text = template.removeprefix(_FIXED_SYSTEM_START).removesuffix(_FIXED_SYSTEM_REST)
    simple = not set(text) & set("'\\\n{}<|>")  # without escapes, line ends and control tokens
    return text if simple and chat_template(text) == template else None


def read_chat_template(folder: Path) -> str:
    """Return the chat template in a tokenizer's folder; of several the one named default; "" for none."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    if not (file := folder / "tokenizer_config.json").is_file():
        return ""
    template = read_object(file).get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) else ""


STEPS = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip"),
    "pre_tokenizer": (
        "Split",
        "ByteLevel",
        "Digits",
        "Punctuation",
        "Whitespace",
        "WhitespaceSplit",
    ),
    "decoder": ("ByteLevel", "Fuse"),
}
"""Types of steps of a tokenizer.json that can't make a text or ids longer without bound, and don't panic."""
SEQUENCES = ("normalizers", "pretokenizers", "decoders")
"""Keys under which a sequence in a tokenizer.json has its steps."""


def check_specification(spec: dict[str, Any]) -> None:
    """Raise ValueError, with the key at fault, if the content of a tokenizer.json has another form than `specification`
    returns. Only the parts that this package reads are checked; the library checks all others."""
    added, model = spec.get("added_tokens") or [], spec.get("model")
    if not isinstance(added, list):
        raise ValueError(f"expected added_tokens to be a list, found {type(added).__name__}")
    for token in added:
        if not (
            isinstance(token, dict)
            and isinstance(token.get("content"), str)
            and isinstance(token.get("rstrip"), bool)
            and _is_id(token.get("id"))
        ):
            raise ValueError(
                "expected each of added_tokens to have the text content, the boolean rstrip and an id from 0 to "
                f"{MAX_ID:,}, found {token!r:.200}"
            )
    for part, allowed in STEPS.items():
        if others := [name for name in _steps(spec.get(part)) if name not in allowed]:
            raise ValueError(
                f"expected a {part} of a byte-level tokenizer ({', '.join(allowed)}), found {others[0]!r:.80}"
            )
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ValueError(f"expected model.vocab to be an object of ids, found {vocabulary!r:.80}")
    if not all(map(_is_id, vocabulary.values())):
        wrong = next(token for token, id in vocabulary.items() if not _is_id(id))
        raise ValueError(
            f"expected the id of {wrong!r:.80} in model.vocab to be an integer from 0 to {MAX_ID:,}, found "
            f"{vocabulary[wrong]!r:.80}"
        )
    assert isinstance(model, dict)
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type", "BPE") != "BPE" or any(map(model.get, affixes)):
        raise ValueError(
            "expected a model of the type BPE without continuing_subword_prefix and end_of_word_suffix, found "
            f"{[model.get(key) for key in ('type', *affixes)]!r:.200}"
        )


def _steps(step: Any) -> Iterator[Any]:
    """The types of the steps of a normalizer, a pre-tokenizer or a decoder, of which a sequence has several."""
    remaining = [step]
    while remaining:
        step = remaining.pop()
        if not isinstance(step, dict):
            continue
        lists = (step[name] for name in SEQUENCES if isinstance(step.get(name), list))
        remaining += chain.from_iterable(lists)
        if step.get("type") != "Sequence":
            yield step.get("type")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def specification(
    vocabulary: dict[str, int], merges: list[Any], pattern: str, controls: dict[str, int]
) -> dict[str, Any]:
    """Return the content of a `tokenizer.json`. Control tokens are also in the vocabulary, so that they keep their ids
    despite its gaps (199,998; 200,000 to 200,009; ...)."""
    # A piece that is a token isn't merged, as in tiktoken.
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] = {**vocabulary, **controls}
    spec["model"]["merges"] = merges
    spec["added_tokens"] = [
        added_token(token, id, *CONTROLS[token][1:]) for token, id in controls.items()
    ]
    return spec


def added_token(text: str, id: int, special: bool, rstrip: bool) -> dict[str, Any]:
    """An entry of `added_tokens`. `rstrip`: white space after it is removed."""
    return {
        "id": id,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def byte_characters() -> list[str]:
    """Return the character for each byte in a byte-level vocabulary: its own if printable, otherwise from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, next_code = [], 0x100
    for byte in range(256):
        characters.append(chr(byte if byte in printable else next_code))
        next_code += byte not in printable
    return characters
