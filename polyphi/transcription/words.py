"""Transcripts of pieces of a recording: their words, the seam of two overlapping ones, and detection of loops.

>>> seam("we saw the quick brown fox ju", "quick brown fox jumps", most=4)     # cut left at 26, and right at 15
(26, 15)

Words are separated by spaces; in scripts without spaces (Han, kana, Thai) each character is a word.
"""

import re
import zlib
from collections.abc import Sequence

from polyphi.processing.tokenizer import Tokenizer
from polyphi.text.scripts import HAN, KANA, UNSPACED_CHARACTERS

LOOP_RATIO = (
    3.5  # zlib's ratio that only a loop reaches [ours]; licences reach 3.0, strings of digits 2.8
)
MAX_MANGLED = 3  # words at the ends of an overlap that may differ between its two transcripts

_STOPS = "\u3001-\u3003\uff01-\uff1f"  # full-width punctuation belongs to the character before it
_WORD = re.compile(rf"[{UNSPACED_CHARACTERS}][{_STOPS}]*|[^\s{UNSPACED_CHARACTERS}]+")
_BARE = re.compile(rf"[{UNSPACED_CHARACTERS}{_STOPS}]")


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word of a text, in characters."""
    return [match.span() for match in _WORD.finditer(text)]


def _normalized(word: str) -> str:
    """A word without case and punctuation, for comparison (unchanged if it is only punctuation)."""
    return re.sub(r"[\W_]+", "", word.casefold()) or word


def seam(left: str, right: str, most: int) -> tuple[int, int] | None:
    """(end in `left`, start in `right`) of the seam of two transcripts whose last and first words (`most` at most) come
    from the same audio: after their longest common run of words. Up to three words on both sides of it may differ,
    since a cut mangles them; then the run must have at least two words. None without such a run."""
    lefts, rights = word_spans(left)[-most - MAX_MANGLED :], word_spans(right)[: most + MAX_MANGLED]
    a, b = (
        [_normalized(text[i:j]) for i, j in spans]
        for text, spans in ((left, lefts), (right, rights))
    )
    best: tuple[tuple[int, int], int, int] | None = None
    for i in range(len(a)):
        for j in range(min(len(b), MAX_MANGLED + 1)):
            run = 0
            while i + run < len(a) and j + run < len(b) and a[i + run] == b[j + run]:
                run += 1
            after = len(a) - i - run
            if after > MAX_MANGLED or run < (1 if after == j == 0 else 2):
                continue
            score = (run, -after - j)
            if best is None or score > best[0]:
                best = (score, lefts[i + run - 1][1], rights[j + run - 1][1])
    return best and best[1:]


def stable_prefix(left: str) -> str:
    """The prefix of `left` that no seam after it can change: all but the words that a cut may mangle."""
    return left[: next((start for start, _ in word_spans(left)[-MAX_MANGLED:]), 0)]


def agreement(left: str, right: str) -> str:
    """The longest common prefix of two texts that ends with a whole word of both."""
    end = 0
    for (_, i), (_, j) in zip(word_spans(left), word_spans(right), strict=False):
        if left[end:i] != right[end:j]:
            break
        end = i
    return left[:end]


def join_texts(left: str, right: str) -> str:
    """Two texts concatenated, with a space if their scripts have one."""
    left, right = left.rstrip(), right.strip()
    if not left or not right or (_BARE.match(left[-1]) and _BARE.match(right[0])):
        return left + right
    return f"{left} {right}"


def repetition(text: str) -> int:
    """The number of words in a loop: one to sixteen words repeated at least four times in a row, sixteen words or more
    in all; 1 if only the compression ratio shows one (in characters without spaces, say), 0 without one."""
    words = [_normalized(text[i:j]) for i, j in word_spans(text)]
    looping = 0
    for period in range(1, 17):
        run = 0
        for i in range(period, len(words) + 1):
            if i < len(words) and words[i] == words[i - period]:
                run += 1
                continue
            if run + period >= max(4 * period, 16):
                looping = max(looping, run + period)
            run = 0
    return looping or int(compression_ratio(text) > LOOP_RATIO)


def compression_ratio(text: str) -> float:
    """The largest zlib compression ratio of the text's parts of 1,000 bytes; longer texts compress well without a loop.
    1 for texts below 100 bytes, which are too short to judge."""
    data = text.encode()
    parts = [data[i : i + 1000] for i in range(0, len(data), 1000)]
    if len(parts) > 1 and len(parts[-1]) < 1000:
        parts[-1] = data[-1000:]
    return max((len(p) / len(zlib.compress(p)) for p in parts if len(p) >= 100), default=1.0)


def token_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of each token in the characters of its answer. Tokens that share a character have the same span."""
    spans: list[tuple[int, int]] = []
    undecoded: list[int] = []
    at = 0
    for n, token in enumerate(tokens):
        undecoded.append(token)
        text = tokenizer.decode(undecoded, skip_special=True)
        if text.endswith("\ufffd") and n + 1 < len(tokens):
            continue
        spans += [(at, at + len(text))] * len(undecoded)
        at, undecoded = at + len(text), []
    return spans


def spoken_length(word: str) -> float:
    """The relative duration of a word in characters: one of a script without spaces counts as three."""
    return 3.0 if _BARE.match(word) else 1.0 + len(word)


def script(text: str) -> str:
    """The script of most letters of a text: "Latin", "Han or kana", "other", or "" without letters."""
    letters = len(re.findall(r"[^\W\d_]", text))
    latin = len(re.findall(r"[A-Za-z\u00aa-\u024f]", text))
    east = len(re.findall(f"[{HAN}{KANA}]", text))
    if not letters:
        return ""
    counts = {"Latin": latin, "Han or kana": east, "other": letters - latin - east}
    return max(counts, key=lambda name: counts[name])
