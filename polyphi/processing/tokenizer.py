"""Text <-> ids. Text of users never becomes a control token.

>>> tokenizer = Tokenizer.load("model/tokenizer.json")
>>> tokenizer.encode("<|user|>") == [tokenizer.control("<|user|>")]      # about ten ordinary tokens instead
False

One `tokenizer.json` is loaded twice: unchanged, to decode, and without its added tokens, to encode. Disabling "special
tokens" isn't enough: the tool tokens of Phi-4 are added tokens that are not special.
"""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from polyphi.processing.vocabulary import (
    AUDIO,
    AUDIO_NAMES,
    CONTROLS,
    DIGIT_SPLIT,
    END,
    END_OF_TEXT,
    IMAGE,
    IMAGE_NAMES,
    O200K_SHA256,
    O200K_SPLIT,
    REQUIRED,
    SPARE,
    WORD_SPLIT,
    aligned,
    byte_characters,
    chat_template,
    check_specification,
    merges_of,
    parse_fixed_system,
    pre_tokenizer,
    read_chat_template,
    specification,
)
from polyphi.runtime.files import read_object
from polyphi.runtime.rust import panics_are_errors

# Boundaries of all splits in any context: none of their alternatives matches a space after anything but whitespace, a
# line end or one of these marks after a letter or digit, a letter after a digit, or a digit after a letter. The letters
# are ranges unchanged since Unicode 2.0, because Python and the tokenizer may have different versions.
_STABLE = "0-9A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
BOUNDARY = re.compile(
    rf"(?<=\S) |(?<=[{_STABLE}])[\n\uff0c\u3002\u3001\uff01\uff1f]|(?<=[0-9])[A-Za-z]|(?<=[A-Za-z])[0-9]"
)
# Emoji and other signs, in no version of Unicode letters, digits, marks or spaces: the splits don't divide their runs.
SIGNS = "\U0001f300-\U0001faff"
SLICE_CHARACTERS = 16_384
"""Minimum number of characters that are encoded at once, up to the next boundary."""

NO_TOKENIZER = (
    "text needs a tokenizer, but this model was loaded with tokenizer=None; give token ids, or load it with "
    "tokenizer='auto' or the path of a tokenizer.json"
)


class Tokenizer:
    """Byte-level BPE with Phi-4's control tokens, from `load`, `train` or `from_ranks`."""

    has_vocabulary = True
    """Whether the tokenizer can encode and decode text (`NoTokenizer` can't)."""
    fixed_system: str | None = None
    """The text before the system messages of every conversation, for chat templates like Phi-4-mini-reasoning's."""

    def __init__(self, spec: dict[str, Any], fixed_system: str | None = None) -> None:
        """`spec` is the content of a `tokenizer.json`. Raises `ValueError` if it lacks a token needed for chats, or if
        it isn't such a content."""
        check_specification(spec)
        self._spec = spec
        self.fixed_system = fixed_system
        self._controls = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        self._rows: int | None = None
        self._stripping = {t["content"] for t in spec.get("added_tokens") or () if t["rstrip"]}
        if missing := [t for t in REQUIRED if t not in self._controls]:
            raise ValueError(
                f"expected Phi-4's added tokens in tokenizer.json, found no {', '.join(missing)}"
            )
        try:
            with panics_are_errors("the library panics"):
                self._full = tokenizers.Tokenizer.from_str(json.dumps(spec))
                self._plain = tokenizers.Tokenizer.from_str(json.dumps(self._without_controls()))
        except Exception as error:  # the library raises no other class
            raise ValueError(f"expected the JSON of a tokenizer, found another: {error}") from None

    def _without_controls(self) -> dict[str, Any]:
        """Return the tokenizer without added tokens, neither in its list nor in its vocabulary."""
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
        """Load a `tokenizer.json` by its path or its folder, with the fixed system text of the template beside it."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path}: expected a tokenizer.json, found nothing there")
        spec, template = read_object(path), read_chat_template(path.parent)
        try:
            return cls(spec, parse_fixed_system(template))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """Return the tokenizer for `from_json` of another process, with what `within` and `with_ends` have set."""
        return json.dumps({"spec": self._spec, "rows": self._rows, "ends": self._further_ends})

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        fields = json.loads(text)
        tokenizer = cls(fields["spec"]).with_ends(fields["ends"])
        return tokenizer if fields["rows"] is None else tokenizer.within(fields["rows"])

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template), readable by transformers."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(
            json.dumps(self._spec, ensure_ascii=False), encoding="utf-8"
        )
        text = json.dumps(self.config, ensure_ascii=False, indent=2, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @property
    def specification(self) -> Mapping[str, Any]:
        """The content of `tokenizer.json`."""
        return self._spec

    @property
    def config(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`."""
        added = {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"}
            for t in self._spec["added_tokens"]
        }
        return {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": END_OF_TEXT,
            "chat_template": chat_template(self.fixed_system),
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "model_max_length": 131072,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": END_OF_TEXT,
        }

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, split: str = DIGIT_SPLIT) -> "Tokenizer":
        """Train a vocabulary of `vocab_size` tokens in all (rounded up to a multiple of 64) on `texts`: 256 bytes,
        merges, and the control tokens last; smaller if the texts have fewer merges. Every digit is a separate token; no
        token crosses a boundary of `split`. Deterministic. Raises `ValueError` if `vocab_size` is too small for the
        bytes."""
        bpe_size = aligned(vocab_size) - len(CONTROLS)
        if bpe_size < 256:
            raise ValueError(
                f"a vocabulary has 256 bytes and {len(CONTROLS)} control tokens, found size {vocab_size}"
            )
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizer(split)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bpe.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=bpe_size, initial_alphabet=alphabet, show_progress=False
            ),
        )
        model = json.loads(bpe.to_str())["model"]
        ids = {token: len(model["vocab"]) + n for n, token in enumerate(CONTROLS)}
        return cls(specification(model["vocab"], model["merges"], split, ids))

    @classmethod
    def from_ranks(cls, path: str | Path) -> "Tokenizer":
        """Return the published 200,064-token vocabulary from a file of o200k_base ranks (per line a token in base64 and
        its rank, as in tiktoken). Takes some seconds, so `save` it. Raises `ValueError` if the file's SHA-256 isn't the
        published one."""
        if not Path(path).is_file():
            raise ValueError(f"{path}: expected a file of o200k_base ranks, found nothing there")
        data = Path(path).read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != O200K_SHA256:
            raise ValueError(
                f"{path}: expected o200k_base ranks with SHA-256 {O200K_SHA256}, found {digest}"
            )
        pairs = (line.split() for line in data.splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        characters = byte_characters()

        def spell(token: bytes) -> str:
            return "".join(characters[b] for b in token)

        vocabulary = {spell(token): rank for token, rank in ranks.items()}
        merges = [[spell(a), spell(b)] for a, b in merges_of(ranks)]
        return cls(
            specification(vocabulary, merges, O200K_SPLIT, {t: c[0] for t, c in CONTROLS.items()})
        )

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Return the ids of plain text, never control tokens. Encoding stops after more than `limit` ids: such a result
        is longer than `limit` and may be incomplete. Raises ValueError for half a surrogate pair (from "\\ud800" in
        JSON)."""
        ids: list[int] = []
        for chunk in self.encode_slices(text):
            ids += chunk
            if limit is not None and len(ids) > limit:
                break
        return ids

    def encode_slices(self, text: str) -> Iterator[list[int]]:
        """Yield the ids of `encode`, slice by slice. Other Python threads can run while a slice is encoded."""
        for piece in self._slices(text):
            try:
                with panics_are_errors("the tokenizer can't encode this text"):
                    # `encode` holds Python's global lock, and is slower because it also computes offsets.
                    (encoding,) = self._plain.encode_batch_fast([piece], add_special_tokens=False)
            except TypeError:
                raise ValueError("expected Unicode text, found half of a surrogate pair") from None
            except Exception as error:
                if type(error) is not Exception:
                    raise
                raise ValueError(f"the tokenizer can't encode this text: {error}") from None
            yield encoding.ids

    def count(self, text: str) -> int:
        """Return the number of ids of a text without storing them."""
        return sum(map(len, self.encode_slices(text)))

    def min_tokens(self, text: str) -> int:
        """Return a lower bound on the number of ids of a text from the counts of its bytes; 0 for a vocabulary without
        such a bound.

        A byte weighs 1/n where n is the length of the longest token that contains it. The bytes of a token of length
        m weigh at most m * 1/m = 1 together, so a text has at least as many tokens as its bytes weigh."""
        longest = self._longest_tokens
        if longest is None:
            return 0
        counts = np.zeros(256, np.int64)
        for start in range(
            0, len(text), 1 << 16
        ):  # in parts, so that other threads can run in between
            chunk = text[start : start + (1 << 16)].encode("utf-8", "surrogatepass")
            counts += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
        weights = (
            Fraction(count, length)
            for count, length in zip(counts.tolist(), longest, strict=True)
            if count
        )
        return ceil(sum(weights, Fraction()))

    def _slices(self, text: str) -> Iterator[str]:
        """Yield slices of a text whose joined ids are those of the whole text."""
        start = 0
        may_be_cut = len(text) > SLICE_CHARACTERS and self.known_split
        while may_be_cut and (end := self._boundary(text, start)) < len(text):
            yield text[start:end]
            start = end
        yield text[start:]

    def _boundary(self, text: str, start: int) -> int:
        """Return a possible end of a slice from `start`, at least `SLICE_CHARACTERS` characters later, or the end of
        the text. The search uses windows because it holds Python's global lock."""
        for window in range(start + SLICE_CHARACTERS, len(text), SLICE_CHARACTERS):
            if match := BOUNDARY.search(text, window, window + SLICE_CHARACTERS):
                return match.start()
            if (inside := self._inside_run(text, start, window)) is not None:
                return inside
        return len(text)

    def _inside_run(self, text: str, start: int, window: int) -> int | None:
        """Return an index within a run of signs near a window that no token crosses: none contains the bytes on both
        sides. Both parts of the run have more bytes than any token, so that neither is a token by itself
        (`ignore_merges`). None if there is no such index."""
        if self._longest_tokens is None:
            return None
        reach = max(self._longest_tokens) + 1
        run = re.compile(rf"[{SIGNS}]{{{2 * reach}}}")
        match = run.search(text, max(start, window - reach), window + SLICE_CHARACTERS + reach)
        if match is None:
            return None
        inside = match.start() + reach
        characters = byte_characters()
        pair = characters[text[inside - 1].encode()[-1]] + characters[text[inside].encode()[0]]
        return None if pair in self._spelling else inside

    @cached_property
    def _spelling(self) -> str:
        """All text tokens, one per line: no byte is represented by a line end."""
        return "\n".join(t for t in self._spec["model"]["vocab"] if t not in self._controls)

    @cached_property
    def known_split(self) -> bool:
        """Whether `BOUNDARY` is valid for the pre-tokenizer, and no normalizer changes the text before."""
        if self._spec.get("normalizer") is not None or self._spec["model"].get("dropout"):
            return False
        step = self._spec.get("pre_tokenizer") or {}
        split, *rest = step.get("pretokenizers") or [step]
        keeps_all_text = (split.get("behavior"), split.get("invert")) in (
            ("Isolated", False),
            ("Removed", True),  # the splits match every character, so nothing is removed
        )
        return (
            keeps_all_text
            and split.get("pattern")
            in ({"Regex": O200K_SPLIT}, {"Regex": DIGIT_SPLIT}, {"Regex": WORD_SPLIT})
            and [(s["type"], s.get("add_prefix_space"), s.get("use_regex")) for s in rest]
            == [("ByteLevel", False, False)]
        )

    @cached_property
    def _longest_tokens(self) -> list[int] | None:
        """The length in bytes of the longest token that contains each of the 256 bytes; None if tokens aren't
        substrings of the text's bytes."""
        model = self._spec["model"]
        if not self.known_split:
            return None
        tokens = [token for token in model["vocab"] if token not in self._controls]
        characters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        lengths = lengths.repeat(lengths)
        codes = [ord(character) for character in byte_characters()]
        longest = np.zeros(max(codes) + 1, np.int64)
        is_byte = characters < len(longest)
        np.maximum.at(longest, characters[is_byte], lengths[is_byte])
        result: list[int] = longest[codes].tolist()
        return result if all(result) else None  # bytes outside the vocabulary have no ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ids; incomplete characters are U+FFFD. `skip_special` leaves out control tokens except
        those of tools, which are needed to parse tool calls."""
        with panics_are_errors("the tokenizer can't decode these ids"):
            if len(ids) <= SLICE_CHARACTERS:
                return self._full.decode(list(ids), skip_special_tokens=skip_special)
            # `decode` holds Python's global lock.
            (text,) = self._full.decode_batch([list(ids)], skip_special_tokens=skip_special)
        return text

    def spelled(self) -> list[bytes | None]:
        """Return the bytes of every id, up to `vocab_size`; None for control tokens and unused ids. Raises ValueError
        for a vocabulary that isn't byte-level."""
        bytes_of = {character: byte for byte, character in enumerate(byte_characters())}
        words: list[bytes | None] = [None] * self.vocab_size
        for token, id in self._spec["model"]["vocab"].items():
            if token not in self._controls:
                if unknown := set(token) - bytes_of.keys():
                    raise ValueError(
                        f"expected a byte-level vocabulary, found {unknown.pop()!r} in the token {token!r:.80}"
                    )
                words[id] = bytes(map(bytes_of.__getitem__, token))
        return words

    def control(self, token: str) -> int:
        """Return the id of a control token by its text. Raises `ValueError` for an unknown one."""
        if token not in self._controls:
            raise ValueError(
                f"this tokenizer has no control token {token!r}; it has {', '.join(self._controls)}"
            )
        return self._controls[token]

    def strips_following_whitespace(self, token: str) -> bool:
        """Return whether whitespace right after a control token is removed, as in the published tokenizer
        (`rstrip`)."""
        return token in self._stripping

    @property
    def controls(self) -> dict[str, int]:
        """All control tokens and their ids."""
        return dict(self._controls)

    @property
    def image_id(self) -> int | None:
        """The placeholder of images; None for a text-only tokenizer."""
        return next((self._controls[t] for t in IMAGE_NAMES if t in self._controls), None)

    @property
    def audio_id(self) -> int | None:
        """The placeholder of audio; None for a text-only tokenizer."""
        return next((self._controls[t] for t in AUDIO_NAMES if t in self._controls), None)

    further: Mapping[str, int] = {}
    """The placeholders of further modalities."""

    @property
    def placeholders(self) -> dict[str, int]:
        """The placeholder of each modality that has one."""
        published = {"image": self.image_id, "audio": self.audio_id}
        return {name: id for name, id in published.items() if id is not None} | dict(self.further)

    def placeholder(self, modality: str) -> int:
        """Return the placeholder of a modality. Raises ValueError where there is none."""
        if (id := self.placeholders.get(modality)) is None:
            able = ", ".join(["text", *self.placeholders])
            raise ValueError(f"this model has no placeholder for {modality}; it reads {able}")
        return id

    def unused_ids(self, rows: int, without: Collection[int] = ()) -> Iterator[int]:
        """Yield ids of an embedding of `rows` rows that no token has, `without` some, those after all tokens
        first; then those of control tokens that no conversation has."""
        used = {*self._controls.values(), *self._spec["model"]["vocab"].values()}
        spare = [self._controls[token] for token in SPARE if token in self._controls]
        free = [*range(max(used) + 1, rows), *(i for i in range(max(used)) if i not in used)]
        yield from (id for id in (*free, *spare) if id not in without)

    def with_placeholder(self, modality: str, id: int) -> "Tokenizer":
        """A copy of this tokenizer with the placeholder of a further modality. No text becomes that placeholder."""
        extended = copy.copy(self)
        extended.further = {**self.further, modality: id}
        return extended

    _further_ends: tuple[int, ...] = ()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: <|end|> first, <|endoftext|> last."""
        return self._controls[END], *self._further_ends, self._controls[END_OF_TEXT]

    def with_ends(self, ids: Iterable[int]) -> "Tokenizer":
        """A copy of this tokenizer whose answers also end at these ids; ids that it doesn't have are left out."""
        extended = copy.copy(self)
        extended._further_ends = ()  # those of another model, if there are any
        own = extended.eos_ids
        ends = (id for id in dict.fromkeys(ids) if id < self.vocab_size and id not in own)
        extended._further_ends = tuple(ends)
        return extended

    @property
    def vocab_size(self) -> int:
        """Embedding rows: the largest id + 1, rounded up to a multiple of 64 (200,064 for the published vocabulary),
        or the rows that were given to `within`."""
        return aligned(self._ids) if self._rows is None else self._rows

    @property
    def _ids(self) -> int:
        """The tokenizer's largest id + 1."""
        return 1 + max(*self._controls.values(), *self._spec["model"]["vocab"].values())

    @property
    def additional(self) -> list[str]:
        """Added tokens that don't have the form of Phi-4's (`<|...|>`): those of a fine-tune."""
        return [token for token in self._controls if not re.fullmatch(r"</?\|.+\|>", token)]

    def within(self, rows: int) -> "Tokenizer":
        """The tokenizer for an embedding of fewer rows than a multiple of 64, as `resize_token_embeddings` of
        transformers makes it. Raises ValueError if it has more ids than rows."""
        if self.vocab_size <= rows:
            return self
        if self._ids > rows:
            raise ValueError(
                f"the tokenizer has {self._ids} ids, but the embedding only {rows} rows; use the tokenizer of this "
                "checkpoint"
            )
        fitted = copy.copy(self)
        fitted._rows = rows
        return fitted

    def with_placeholders(self, rows: int) -> "Tokenizer":
        """A copy of this tokenizer with placeholders of images and audio if it has none (Phi-4-mini's): those of the
        published multimodal vocabulary, with its ids where these are unused, else the next ones. Raises ValueError if
        an embedding of `rows` rows has no unused ones for them."""
        spec = copy.deepcopy(self._spec)
        used = {*self._controls.values(), *spec["model"]["vocab"].values()}
        for token, present in ((IMAGE, self.image_id), (AUDIO, self.audio_id)):
            if present is not None:
                continue
            id, special, strips = CONTROLS[token]
            if id in used or id >= rows:
                id = max(used) + 1
            if id >= rows:
                raise ValueError(
                    f"the embedding has {rows} rows, which the tokenizer uses all; expected an unused one for {token}"
                )
            used.add(id)
            spec["added_tokens"].append(
                {
                    "id": id,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": strips,
                    "normalized": False,
                    "special": special,
                }
            )
        if spec == self._spec:
            return self
        spec["added_tokens"].sort(key=lambda added: added["id"])
        return Tokenizer(spec, self.fixed_system)


class NoTokenizer(Tokenizer):
    """The tokenizer of a model that is used with token ids only, with the ids of the model's configuration. Encoding,
    decoding and the lookup of control tokens raise ValueError."""

    has_vocabulary = False

    def __init__(
        self,
        vocab_size: int,
        eos_ids: Sequence[int],
        placeholders: Mapping[str, int] = {},
    ) -> None:
        self._size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._placeholders = dict(placeholders)

    @property
    def vocab_size(self) -> int:
        """Embedding rows of the model."""
        return self._size

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @property
    def image_id(self) -> int | None:
        return self._placeholders.get("image")

    @property
    def audio_id(self) -> int | None:
        return self._placeholders.get("audio")

    @property
    def controls(self) -> dict[str, int]:
        """An empty dict: the names of control tokens are unknown."""
        return {}

    def encode_slices(self, text: str) -> Iterator[list[int]]:
        raise ValueError(NO_TOKENIZER)

    def min_tokens(self, text: str) -> int:
        raise ValueError(NO_TOKENIZER)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        raise ValueError(NO_TOKENIZER)

    def spelled(self) -> list[bytes | None]:
        raise ValueError(NO_TOKENIZER)

    @property
    def config(self) -> dict[str, Any]:
        raise ValueError(NO_TOKENIZER)

    def control(self, token: str) -> int:
        raise ValueError(NO_TOKENIZER)

    def save(self, folder: str | Path) -> None:
        raise ValueError(NO_TOKENIZER)
