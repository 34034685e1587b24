"""Texts that a model wrote of pieces of a recording: their words, where two of them meet, whether one is a loop.

>>> seam("we saw the quick brown fox ju", "quick brown fox jumps", most=4)     # leave left at 26, enter right at 15
(26, 15)

A word is what stands between spaces; in scripts without spaces (Han, kana, Thai) a character is one.
"""

import re
import zlib
from collections.abc import Sequence

from polyphi.processing.tokenizer import Tokenizer
from polyphi.text.scripts import HAN, KANA, UNSPACED_CHARACTERS

SHRINKS = 3.5  # zlib's ratio that only a loop reaches [ours]; licences come to 3.0, strings of digits to 2.8
MANGLED = 3  # words at the ends of an overlap that its two sides may hear differently

_STOPS = "\u3001-\u3003\uff01-\uff1f"  # full-width punctuation goes with the character before it
_WORD = re.compile(rf"[{UNSPACED_CHARACTERS}][{_STOPS}]*|[^\s{UNSPACED_CHARACTERS}]+")
_BARE = re.compile(rf"[{UNSPACED_CHARACTERS}{_STOPS}]")


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end."""
    return [match.span() for match in _WORD.finditer(text)]


def _plain(word: str) -> str:
    """A word as two hearings of it must agree: without case and punctuation (all of it if it's nothing else)."""
    return re.sub(r"[\W_]+", "", word.casefold()) or word


def seam(left: str, right: str, most: int) -> tuple[int, int] | None:
    """Where to leave `left` and enter `right`, two transcripts whose last and first words (`most` at most) are the same
    sound: after and behind their longest common run of words. Up to three words before and behind it may differ,
    as a cut mangles them; then the run has two words at least. None where there is no such run."""
    lefts, rights = words_of(left)[-most - MANGLED :], words_of(right)[: most + MANGLED]
    a, b = (
        [_plain(text[i:j]) for i, j in spans] for text, spans in ((left, lefts), (right, rights))
    )
    best: tuple[tuple[int, int], int, int] | None = None
    for i in range(len(a)):
        for j in range(min(len(b), MANGLED + 1)):
            run = 0
            while i + run < len(a) and j + run < len(b) and a[i + run] == b[j + run]:
                run += 1
            behind = len(a) - i - run
            if behind > MANGLED or run < (1 if behind == j == 0 else 2):
                continue
            score = (run, -behind - j)
            if best is None or score > best[0]:
                best = (score, lefts[i + run - 1][1], rights[j + run - 1][1])
    return best and best[1:]


def certain(left: str) -> str:
    """What of `left` stays where a seam follows, whatever comes behind it: all but the words that a cut may mangle."""
    return left[: next((start for start, _ in words_of(left)[-MANGLED:]), 0)]


def join_texts(left: str, right: str) -> str:
    """Two texts, one behind the other, with a space where their scripts have one."""
    left, right = left.rstrip(), right.strip()
    if not left or not right or (_BARE.match(left[-1]) and _BARE.match(right[0])):
        return left + right
    return f"{left} {right}"


def repetition(text: str) -> int:
    """How many words of a text are a loop: one to sixteen words said at least four times in a row, sixteen words or
    more; 1 where only zlib finds one (in characters without spaces, say), 0 where there is none."""
    words = [_plain(text[i:j]) for i, j in words_of(text)]
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
    return looping or int(shrinkage(text) > SHRINKS)


def shrinkage(text: str) -> float:
    """How many times smaller zlib makes the text, of its parts of 1,000 bytes the one that shrinks most; longer ones
    would shrink without a loop. Under 100 bytes it says nothing: 1."""
    data = text.encode()
    parts = [data[i : i + 1000] for i in range(0, len(data), 1000)]
    if len(parts) > 1 and len(parts[-1]) < 1000:
        parts[-1] = data[-1000:]
    return max((len(p) / len(zlib.compress(p)) for p in parts if len(p) >= 100), default=1.0)


def token_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Which characters of its answer each token is, as (start, end). Tokens that share a character have the same."""
    spans: list[tuple[int, int]] = []
    waiting: list[int] = []
    at = 0
    for n, token in enumerate(tokens):
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special=True)
        if text.endswith("\ufffd") and n + 1 < len(tokens):
            continue
        spans += [(at, at + len(text))] * len(waiting)
        at, waiting = at + len(text), []
    return spans


def size(word: str) -> float:
    """How long a word takes to say, in letters: a character of a script without spaces counts as three."""
    return 3.0 if _BARE.match(word) else 1.0 + len(word)


def script(text: str) -> str:
    """The script that most letters of a text have: "Latin", "Han or kana", "other", or "" where it has none."""
    letters = len(re.findall(r"[^\W\d_]", text))
    latin = len(re.findall(r"[A-Za-z\u00aa-\u024f]", text))
    east = len(re.findall(f"[{HAN}{KANA}]", text))
    if not letters:
        return ""
    counts = {"Latin": latin, "Han or kana": east, "other": letters - latin - east}
    return max(counts, key=lambda name: counts[name])
