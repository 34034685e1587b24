"""Slices of a text that are encoded one after the other, and the fewest tokens that a text can have.

>>> slices = TextSlices(specification, controls)            # of a tokenizer.json
>>> "".join(slices.of(text)) == text
True

A long text is encoded in slices, so that other Python threads can run in between, and its encoding stops early where a
row has room for fewer tokens. The ids of the slices are those of the whole text.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np

from polyphi.processing.vocabulary import DIGIT_SPLIT, O200K_SPLIT, WORD_SPLIT, byte_characters

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


class TextSlices:
    """The slices of texts for the content of a `tokenizer.json`; `controls` are its added tokens."""

    def __init__(self, specification: Mapping[str, Any], controls: Collection[str]) -> None:
        self._spec, self._controls = specification, controls

    def of(self, text: str) -> Iterator[str]:
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
    def _spelling(self) -> str:
        """All text tokens, one per line: no byte is represented by a line end."""
        return "\n".join(t for t in self._spec["model"]["vocab"] if t not in self._controls)

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
