"""What a tokenizer.json of ours holds: control tokens, how text is split before merging, the chat template.

The published 200,064-token vocabulary and small ones trained here have the same form.
"""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

END_OF_TEXT, END, IMAGE, AUDIO = "<|endoftext|>", "<|end|>", "<|endoftext10|>", "<|endoftext11|>"
# Microsoft's layout, then the transformers one's
IMAGE_NAMES, AUDIO_NAMES = (IMAGE, "<|image|>"), (AUDIO, "<|audio|>")

# Token -> (id in the published vocabulary, special, swallows whitespace after it); from the published tokenizer_config.
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
)  # without these there is no chat
ALIGNMENT = 64  # embedding rows come in multiples of 64

# How o200k_base splits text before merging: words with the space before them, one to three digits, signs, line ends.
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
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
# A small model does sums far better on single digits than on three at a time, so our own vocabularies have no others.
DIGIT_SPLIT = O200K_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# Words without the space before them: one token wherever they stand, behind a space, at the start of an answer, in
# quotes. A small model copies and translates them better, at more tokens a text.
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
    """The content of a `tokenizer.json`. Control tokens stand in the vocabulary too: so they keep their ids where it
    has gaps (199,998; 200,000 to 200,009; ...)."""
    # A piece that is a token as it stands is taken whole, as tiktoken does.
    shell = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    shell.pre_tokenizer = pre_tokenizer(pattern)
    shell.decoder = decoders.ByteLevel()
    spec = json.loads(shell.to_str())
    spec["model"]["vocab"] = {**vocabulary, **controls}
    spec["model"]["merges"] = merges
    spec["added_tokens"] = [
        {
            "id": id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": CONTROLS[token][2],
            "normalized": False,
            "special": CONTROLS[token][1],
        }
        for token, id in controls.items()
    ]
    return spec


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: its own where it prints, else from U+0100
    on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = [], 0x100
    for byte in range(256):
        letters.append(chr(byte if byte in printable else spare))
        spare += byte not in printable
    return letters


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two tokens that each longer token is merged from, in order of rank: its bytes are merged by the ranks below
    its own until two are left. The few tokens that are never reached so are found whole (`ignore_merges`)."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best, at = rank, -1
            for i in range(len(parts) - 1):
                found = ranks.get(parts[i] + parts[i + 1], rank)
                if found < best:
                    best, at = found, i
            if at < 0:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
