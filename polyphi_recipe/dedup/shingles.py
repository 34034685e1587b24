"""Hashed shingles of texts, whose similarity is the share of shingles in common.

>>> tokens("Don't PANIC, 東京へ!")
['don', 't', 'panic', '東', '京', 'へ']
>>> len(ngrams(hashes(tokens("one two three four")), 3))
2

Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are split into characters, all others into words;
a text that mixes both is split by both rules. Numbers and accents are kept: in arithmetic the numbers are the content.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt64

from polyphi.text.scripts import HAN, KANA, UNSPACED_CHARACTERS

_TOKEN = re.compile(rf"[{UNSPACED_CHARACTERS}]|[^\W_{UNSPACED_CHARACTERS}]+")
_PARTICLES = re.compile(rf"[\u3040-\u309f]|\d{{1,2}}|(?![\d{HAN}{KANA}]).{{1,3}}")
"""Tokens with little content: hiragana, words of up to three letters, and numbers of up to two digits."""
STEM = 6
"""Letters of a content word that are used: the remainder is mostly inflection."""


def tokens(text: str) -> list[str]:
    """Return words, or characters in scripts without spaces; compatibility forms and case folded, no punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(1 << 16)
def _hash(token: str) -> int:
    return int.from_bytes(blake2b(token.encode(errors="surrogatepass"), digest_size=8).digest())


def hashes(words: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """Return a stable 64-bit hash of each token."""
    return np.fromiter(map(_hash, words), np.uint64, len(words))


def mix(value: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def ngrams(hashed: UInt64[np.ndarray, " n"], n: int) -> UInt64[np.ndarray, " m"]:
    """Return the hashes of all runs of `n` tokens, in order: m = max(0, tokens - n + 1)."""
    return all_ngrams(hashed, (n,))[n]


def all_ngrams(
    hashed: UInt64[np.ndarray, " n"], sizes: Collection[int]
) -> dict[int, UInt64[np.ndarray, " m"]]:
    """Return `ngrams` of several sizes, the longer ones computed from the shorter ones."""
    out, by_size = np.zeros(len(hashed) + 1, np.uint64), {}
    for k in range(max(sizes, default=0) + 1):
        if k in sizes:
            by_size[k] = out
        out = mix(out[:-1] + hashed[k:])
    return by_size


def content(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return (stems of the content words, their positions in `words`). Words of up to three letters, hiragana and
    numbers below a hundred are excluded: every text has them."""
    positions = [i for i, word in enumerate(words) if not _PARTICLES.fullmatch(word)]
    return [words[i][:STEM] for i in positions], positions


def pairs(hashed: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, "n 3"]:
    """Return three shingles for each token: itself, and itself with each of the next two, in either order. Without a
    next token the pair is 0."""
    out = np.zeros((len(hashed), 3), np.uint64)
    out[:, 0] = mix(hashed)
    for step in (1, 2):
        a, b = hashed[:-step], hashed[step:]
        out[: len(a), step] = mix(mix(np.minimum(a, b)) + np.maximum(a, b))
    return out


def unspaced(words: Sequence[str]) -> bool:
    """Return whether most of a text is written without spaces, so that its tokens are characters."""
    return sum(bool(re.match(f"[{UNSPACED_CHARACTERS}]", word)) for word in words) * 2 > len(words)
