"""Text <-> ids. What a person types never becomes a control token.

>>> tokenizer = Tokenizer.load("model/tokenizer.json")
>>> tokenizer.encode("<|user|>") == [tokenizer.control("<|user|>")]      # ten or so ordinary tokens instead
False

One `tokenizer.json` is read twice: whole, to decode, and without its added tokens, to encode. Turning off "special
tokens" in a tokenizer would not do alone, for the tool tokens of Phi-4 are added tokens that are not special.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from polyphi.processing.vocabulary import (
    AUDIO_NAMES,
    CHAT_TEMPLATE,
    CONTROLS,
    DIGIT_SPLIT,
    END,
    END_OF_TEXT,
    IMAGE_NAMES,
    O200K_SHA256,
    O200K_SPLIT,
    REQUIRED,
    WORD_SPLIT,
    aligned,
    byte_letters,
    merges_of,
    pre_tokenizer,
    specification,
)

# Where both splits have a boundary whatever stands around: no alternative of theirs matches a space after anything but
# whitespace, a line end or one of these marks after a letter or digit, a letter after a digit, or a digit after a
# letter. The letters are ranges that haven't changed since Unicode 2.0: Python and the tokenizer may know different
# versions.
_SURE = "0-9A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
BOUNDARY = re.compile(
    rf"(?<=\S) |(?<=[{_SURE}])[\n\uff0c\u3002\u3001\uff01\uff1f]|(?<=[0-9])[A-Za-z]|(?<=[A-Za-z])[0-9]"
)
# Emoji and other signs, in no version of Unicode letters, digits, marks or spaces: the splits keep runs of them whole.
SIGNS = "\U0001f300-\U0001faff"
SLICE = 16_384
"""Characters of a text that are encoded at once, or as many as stand before its next boundary."""

NO_TOKENIZER = (
    "text needs a tokenizer, but this model was loaded with tokenizer=None; give token ids, or load it with "
    "tokenizer='auto' or the path of a tokenizer.json"
)


class Tokenizer:
    """Byte-level BPE with Phi-4's control tokens. Made by `load`, `train` or `from_ranks`; finds ids by token text."""

    has_vocabulary = True
    """Whether it encodes and decodes text (`NoTokenizer` doesn't)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """`spec` is the content of a `tokenizer.json`. Raises `ValueError` if it lacks the tokens every chat needs."""
        self._spec = spec
        self._controls = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        self._swallows = {t["content"] for t in spec.get("added_tokens") or () if t["rstrip"]}
        if missing := [t for t in REQUIRED if t not in self._controls]:
            raise ValueError(
                f"expected Phi-4's added tokens in tokenizer.json, found no {', '.join(missing)}"
            )
        self._whole = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(self._without_controls()))

    def _without_controls(self) -> dict[str, Any]:
        """The same tokenizer that knows no added token. Their names also stand in the vocabulary, to hold their
        ids."""
        model = self._spec["model"]
        vocabulary = {
            token: id for token, id in model["vocab"].items() if token not in self._controls
        }
        unused: dict[str, Any] = {
            "added_tokens": [],
            "post_processor": None,
            "padding": None,
            "truncation": None,
        }
        return {**self._spec, **unused, "model": {**model, "vocab": vocabulary}}

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a `tokenizer.json` or the folder it lies in."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path}: expected a tokenizer.json, found nothing there")
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            return cls(spec)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise ValueError(
                f"{path}: expected the JSON of a tokenizer, found something else"
            ) from None

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template), which transformers reads
        too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(
            json.dumps(self._spec, ensure_ascii=False), encoding="utf-8"
        )
        added = {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"}
            for t in self._spec["added_tokens"]
        }
        config = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": END_OF_TEXT,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "model_max_length": 131072,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": END_OF_TEXT,
        }
        text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, split: str = DIGIT_SPLIT) -> "Tokenizer":
        """A vocabulary of `vocab_size` tokens in all (rounded up to a multiple of 64), learnt from `texts`: 256 bytes,
        merges, and the control tokens last; smaller if the texts hold no more. Every digit is a token of its own; no
        token crosses a boundary of `split`. Deterministic. Raises `ValueError` if there is no room for the bytes."""
        wanted = aligned(vocab_size) - len(CONTROLS)
        if wanted < 256:
            raise ValueError(
                f"a vocabulary has 256 bytes and {len(CONTROLS)} control tokens, found size {vocab_size}"
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizer(split)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        learner.train_from_iterator(
            texts,
            trainers.BpeTrainer(vocab_size=wanted, initial_alphabet=alphabet, show_progress=False),
        )
        model = json.loads(learner.to_str())["model"]
        ids = {token: len(model["vocab"]) + n for n, token in enumerate(CONTROLS)}
        return cls(specification(model["vocab"], model["merges"], split, ids))

    @classmethod
    def from_ranks(cls, path: str | Path) -> "Tokenizer":
        """The published 200,064-token vocabulary, from a file of o200k_base ranks (a token in base64 and its rank per
        line, as tiktoken keeps it). Takes some seconds, so `save` it. Raises `ValueError` if the file's SHA-256 isn't
        the known one."""
        if not Path(path).is_file():
            raise ValueError(f"{path}: expected a file of o200k_base ranks, found nothing there")
        data = Path(path).read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != O200K_SHA256:
            raise ValueError(
                f"{path}: expected o200k_base ranks with SHA-256 {O200K_SHA256}, found {found}"
            )
        pairs = (line.split() for line in data.splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        letters = byte_letters()

        def spell(token: bytes) -> str:
            return "".join(letters[b] for b in token)

        vocabulary = {spell(token): rank for token, rank in ranks.items()}
        merges = [[spell(a), spell(b)] for a, b in merges_of(ranks)]
        return cls(
            specification(vocabulary, merges, O200K_SPLIT, {t: c[0] for t, c in CONTROLS.items()})
        )

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says. Encoding stops once there are more than
        `limit` ids: such a result is longer than `limit` and may not be whole. Raises ValueError for half a surrogate
        pair (what "\\ud800" in JSON becomes), which is no text."""
        ids: list[int] = []
        for some in self.encode_slices(text):
            ids += some
            if limit is not None and len(ids) > limit:
                break
        return ids

    def encode_slices(self, text: str) -> Iterator[list[int]]:
        """The ids of `encode`, slice by slice. Other Python threads run while a slice is encoded."""
        for piece in self._slices(text):
            try:
                # `encode` holds Python's global lock all the while, and is slower: it finds offsets too.
                (found,) = self._plain.encode_batch_fast([piece], add_special_tokens=False)
            except TypeError:
                raise ValueError("expected Unicode text, found half of a surrogate pair") from None
            yield found.ids

    def count(self, text: str) -> int:
        """The number of ids of a text, without keeping them."""
        return sum(map(len, self.encode_slices(text)))

    def min_tokens(self, text: str) -> int:
        """A lower bound on the number of ids of a text, for the cost of counting its bytes; 0 for a vocabulary that
        allows none.

        A byte weighs 1/n where n is the length of the longest token that contains it. The bytes of a token of length
        m weigh at most m * 1/m = 1 together, so a text has at least as many tokens as its bytes weigh."""
        longest = self._longest_tokens
        if longest is None:
            return 0
        counts = np.zeros(256, np.int64)
        for start in range(0, len(text), 1 << 16):  # in parts: other threads run between them
            some = text[start : start + (1 << 16)].encode("utf-8", "surrogatepass")
            counts += np.bincount(np.frombuffer(some, np.uint8), minlength=256)
        weights = (
            Fraction(count, length)
            for count, length in zip(counts.tolist(), longest, strict=True)
            if count
        )
        return ceil(sum(weights, Fraction()))

    def _slices(self, text: str) -> Iterator[str]:
        """A text in pieces whose ids, joined, are those of the whole."""
        start = 0
        while self._known_split and (end := self._boundary(text, start)) < len(text):
            yield text[start:end]
            start = end
        yield text[start:]

    def _boundary(self, text: str, start: int) -> int:
        """Where a slice that begins at `start` may end, from `SLICE` characters on, or the text's end. It is looked for
        in windows: a search holds Python's global lock."""
        for window in range(start + SLICE, len(text), SLICE):
            if found := BOUNDARY.search(text, window, window + SLICE):
                return found.start()
            if (inside := self._inside_run(text, start, window)) is not None:
                return inside
        return len(text)

    def _inside_run(self, text: str, start: int, window: int) -> int | None:
        """A place within a run of signs, near a window, where no token can reach across: none holds the bytes on both
        sides. On each side the run has more bytes in its slice than any token, so that neither part is taken whole
        where the run isn't (`ignore_merges`)."""
        if self._longest_tokens is None:
            return None
        reach = max(self._longest_tokens) + 1
        run = re.compile(rf"[{SIGNS}]{{{2 * reach}}}")
        found = run.search(text, max(start, window - reach), window + SLICE + reach)
        if found is None:
            return None
        inside = found.start() + reach
        letters = byte_letters()
        pair = letters[text[inside - 1].encode()[-1]] + letters[text[inside].encode()[0]]
        return None if pair in self._spelling else inside

    @cached_property
    def _spelling(self) -> str:
        """All tokens of text, a line each: no byte is written as a line end."""
        return "\n".join(t for t in self._spec["model"]["vocab"] if t not in self._controls)

    @cached_property
    def _known_split(self) -> bool:
        """Whether `BOUNDARY` holds for how this tokenizer splits text, and nothing changes the text before."""
        if self._spec.get("normalizer") is not None or self._spec["model"].get("dropout"):
            return False
        step = self._spec.get("pre_tokenizer") or {}
        split, *rest = step.get("pretokenizers") or [step]
        whole = (split.get("behavior"), split.get("invert")) in (
            ("Isolated", False),
            ("Removed", True),  # the splits match every character, so nothing is removed
        )
        return (
            whole
            and split.get("pattern")
            in ({"Regex": O200K_SPLIT}, {"Regex": DIGIT_SPLIT}, {"Regex": WORD_SPLIT})
            and [(s["type"], s.get("add_prefix_space"), s.get("use_regex")) for s in rest]
            == [("ByteLevel", False, False)]
        )

    @cached_property
    def _longest_tokens(self) -> list[int] | None:
        """The length in bytes of the longest token that contains each of the 256 bytes; None where tokens are
        something else than runs of the text's own bytes."""
        model = self._spec["model"]
        affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        if not self._known_split or model.get("type", "BPE") != "BPE" or affixes:
            return None
        tokens = [token for token in model["vocab"] if token not in self._controls]
        letters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        lengths = lengths.repeat(lengths)
        codes = [ord(letter) for letter in byte_letters()]
        longest = np.zeros(max(codes) + 1, np.int64)
        known = letters < len(longest)
        np.maximum.at(longest, letters[known], lengths[known])
        found: list[int] = longest[codes].tolist()
        return found if all(found) else None  # what isn't in the vocabulary is left out of the ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ids; incomplete characters show as U+FFFD. `skip_special` leaves out control tokens except those of
        tools, which the reader of a tool call needs."""
        if len(ids) <= SLICE:
            return self._whole.decode(list(ids), skip_special_tokens=skip_special)
        # `decode` holds Python's global lock all the while.
        (text,) = self._whole.decode_batch([list(ids)], skip_special_tokens=skip_special)
        return text

    def spelled(self) -> list[bytes | None]:
        """The bytes of every id, up to `vocab_size`; None for control tokens and ids that mean nothing."""
        bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        words: list[bytes | None] = [None] * self.vocab_size
        for token, id in self._spec["model"]["vocab"].items():
            if token not in self._controls:
                words[id] = bytes(map(bytes_of.__getitem__, token))
        return words

    def control(self, token: str) -> int:
        """Id of a control token, by its text. Raises `ValueError` if the tokenizer has none of that name."""
        if token not in self._controls:
            raise ValueError(
                f"this tokenizer has no control token {token!r}; it has {', '.join(self._controls)}"
            )
        return self._controls[token]

    def swallows(self, token: str) -> bool:
        """Whether whitespace right after this control token disappears, as in the published tokenizer (`rstrip`)."""
        return token in self._swallows

    @property
    def controls(self) -> dict[str, int]:
        """All control tokens and their ids."""
        return dict(self._controls)

    @property
    def image_id(self) -> int | None:
        """The placeholder of pictures; None for a text-only tokenizer."""
        return next((self._controls[t] for t in IMAGE_NAMES if t in self._controls), None)

    @property
    def audio_id(self) -> int | None:
        """The placeholder of clips; None for a text-only tokenizer."""
        return next((self._controls[t] for t in AUDIO_NAMES if t in self._controls), None)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends an answer: <|end|>, <|endoftext|>."""
        return self._controls[END], self._controls[END_OF_TEXT]

    @property
    def vocab_size(self) -> int:
        """Embedding rows: the largest id + 1, rounded up to a multiple of 64 (200,064 for the published
        vocabulary)."""
        return aligned(1 + max(*self._controls.values(), *self._spec["model"]["vocab"].values()))


class NoTokenizer(Tokenizer):
    """The tokenizer of a model that works on token ids alone: it knows the ids that the model's configuration names.
    Encoding, decoding and looking up control tokens raise ValueError."""

    has_vocabulary = False

    def __init__(
        self,
        vocab_size: int,
        eos_ids: Sequence[int],
        image_id: int | None = None,
        audio_id: int | None = None,
    ) -> None:
        self._size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._image_id = image_id
        self._audio_id = audio_id

    @property
    def vocab_size(self) -> int:
        """Embedding rows of the model."""
        return self._size

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @property
    def image_id(self) -> int | None:
        return self._image_id

    @property
    def audio_id(self) -> int | None:
        return self._audio_id

    @property
    def controls(self) -> dict[str, int]:
        """Empty: the names of control tokens aren't known."""
        return {}

    def encode_slices(self, text: str) -> Iterator[list[int]]:
        raise ValueError(NO_TOKENIZER)

    def min_tokens(self, text: str) -> int:
        raise ValueError(NO_TOKENIZER)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        raise ValueError(NO_TOKENIZER)

    def spelled(self) -> list[bytes | None]:
        raise ValueError(NO_TOKENIZER)

    def control(self, token: str) -> int:
        raise ValueError(NO_TOKENIZER)

    def save(self, folder: str | Path) -> None:
        raise ValueError(NO_TOKENIZER)
