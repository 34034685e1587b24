"""Text <-> ids. Text of users never becomes a control token.

>>> tokenizer = Tokenizer.load("model/tokenizer.json")
>>> tokenizer.encode("<|user|>") == [tokenizer.control("<|user|>")]      # about ten ordinary tokens instead
False

One `tokenizer.json` is loaded twice: unchanged, to decode, and without its added tokens, to encode. Disabling "special
tokens" isn't enough: the tool tokens of Phi-4 are added tokens that are not special.
"""

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from polyphi.processing.conversation import PHI4, ConversationMarks, recognized
from polyphi.processing.text_slices import SLICE_CHARACTERS, TextSlices
from polyphi.processing.vocabulary import (
    AUDIO_NAMES,
    CONTROLS,
    DIGIT_SPLIT,
    IMAGE_NAMES,
    SPARE,
    aligned,
    byte_characters,
    chat_template,
    check_specification,
    parse_fixed_system,
    pre_tokenizer,
    read_chat_template,
    specification,
)
from polyphi.runtime.files import read_object
from polyphi.runtime.rust import panics_are_errors

SHORT_CHARACTERS, SHORT_TEXTS = 32, 4096
"""Texts of at most so many characters are encoded once, until there are so many of them: the lines of a template and
the labels of images recur in each row, and a call of the library takes 20 us."""
NO_TOKENIZER = (
    "text needs a tokenizer, but this model was loaded with tokenizer=None; give token ids, or load it with "
    "tokenizer='auto' or the path of a tokenizer.json"
)


class Tokenizer:
    """Byte-level BPE with the control tokens of a known conversation (conversation.py), from `load` or `train`, or from
    ranks (published_vocabulary.py)."""

    marks: ConversationMarks = PHI4
    """What is around the messages of a conversation."""
    has_vocabulary = True
    """Whether the tokenizer can encode and decode text (`NoTokenizer` can't)."""
    fixed_system: str | None = None
    """The text before the system messages of every conversation, for chat templates like Phi-4-mini-reasoning's."""

    def __init__(self, spec: dict[str, Any], template: str = "") -> None:
        """`spec` is the content of a `tokenizer.json`, `template` the chat template. Raises `ValueError` if it lacks a
        token needed for chats, for a template that isn't known, and if `spec` isn't such a content."""
        check_specification(spec)
        self._spec, self.template = spec, template
        self.fixed_system = parse_fixed_system(template)
        self._controls = {t["content"]: t["id"] for t in spec.get("added_tokens") or ()}
        self._rows: int | None = None
        self._short = dict[str, list[int]]()
        self.slices = TextSlices(spec, self._controls)
        self._stripping = {t["content"] for t in spec.get("added_tokens") or () if t["rstrip"]}
        self.marks = recognized(self._controls, template)
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
            return cls(spec, template)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """Return the tokenizer for `from_json` of another process, with what `within` and `with_ends` have set."""
        fields = {"spec": self._spec, "template": self.template, "rows": self._rows}
        return json.dumps({**fields, "ends": self._further_ends})

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        fields = json.loads(text)
        tokenizer = cls(fields["spec"], fields["template"]).with_ends(fields["ends"])
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
        end, is_phi = self.marks.document_end, self.marks is PHI4
        return {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": self.marks.begin[0] if self.marks.begin else end,
            "chat_template": chat_template(self.fixed_system) if is_phi else self.template or None,
            "clean_up_tokenization_spaces": False,
            "eos_token": end if is_phi else self.marks.end[0],
            "model_max_length": 131072,
            "pad_token": end,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": end,
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
        for piece in self.slices.of(text):
            if len(piece) > SHORT_CHARACTERS or self._spec["model"].get("dropout"):
                yield self._encode_piece(piece)
            else:
                if (ids := self._short.get(piece)) is None:
                    ids = self._encode_piece(piece)
                    if len(self._short) >= SHORT_TEXTS:
                        self._short.clear()
                    self._short[piece] = ids
                yield ids.copy()

    def _encode_piece(self, piece: str) -> list[int]:
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
        return encoding.ids

    def count(self, text: str) -> int:
        """Return the number of ids of a text without storing them."""
        return sum(map(len, self.encode_slices(text)))

    def min_tokens(self, text: str) -> int:
        """Return a lower bound on the number of ids of a text, from the counts of its bytes."""
        return self.slices.min_tokens(text)

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
        """Ids that end an answer: first the one of a turn (<|end|>), last the one of a document (<|endoftext|>)."""
        turn, document = self.marks.end[0], self.marks.document_end
        return self._controls[turn], *self._further_ends, self._controls[document]

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
