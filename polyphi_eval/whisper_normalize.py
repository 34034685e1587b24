"""Whisper's text normalizers, for the word error rates of the report's Tables 3 and 4.

>>> english("Mr. Quilter's colours cost twenty-one dollars, um!")
'mister quilter is colors cost $21'
>>> basic("Où est l'été?")
'où est l été '
>>> basic("你好。", split_letters=True)
'你 好 '

The package whisper-normalizer has the rules. `english` is the Open ASR Leaderboard's version of 11 September 2023 to
5 August 2025, which the report used: without the words that later versions replace, and with one more spelling.

Both return the same strings as `transformers.models.whisper.english_normalizer`, including its errors ("point hundred"
loses its point, "ninth" isn't a number), but take linear time and never raise.
"""

import re
from functools import cache
from typing import Any

LATER_RULES = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
"""Words that Whisper replaces since 2025."""
FURTHER_SPELLINGS = {"mm": "hmm"}
"""The leaderboard's additions to Whisper's table."""

_SQUARE, _ROUND = re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+\)")
_UNPAIRED = str.maketrans(dict.fromkeys("<[(", "{"))
"""The normalizers replace each of these by a space, but search from "<", "[" and "(" to the end of the text."""


def basic(text: str, split_letters: bool = False) -> str:
    """Normalize a text: lower case, no text in brackets, no punctuation and symbols; diacritics are kept. With
    `split_letters` a space follows every letter, so that a word error rate counts characters (Chinese, Japanese)."""
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=split_letters)(_without_brackets(text))


def english(text: str) -> str:
    """Normalize an English text: lower case, no brackets, fillers, diacritics, punctuation and symbols; expanded
    contractions and titles, numbers in digits, American spellings. Numbers of a text with one that is too long for
    Python's conversion (4,300 digits) are kept."""
    normalizer = _english()
    # The pattern for spaces before an apostrophe takes quadratic time for many spaces.
    text = re.sub(normalizer.ignore_patterns, "", _without_brackets(text))
    return normalizer(re.sub(r"\s+", " ", text))


def _without_brackets(text: str) -> str:
    """The text in lower case, without what the normalizers remove first."""
    text = text.lower()
    for pattern, closing in ((_SQUARE, ">]"), (_ROUND, ")")):
        # Nothing matches after the last closing bracket, and searching there would take quadratic time.
        end = 1 + max(text.rfind(c) for c in closing)
        text = pattern.sub("", text[:end]) + text[end:]
    return text.translate(_UNPAIRED)


@cache
def _english() -> Any:
    from whisper_normalizer.english import EnglishNumberNormalizer, EnglishTextNormalizer

    class Numbers(EnglishNumberNormalizer):
        def process_words(self, words: list[str]) -> list[str]:
            try:
                return list(super().process_words(words))
            except (AssertionError, ValueError):  # a number of too many digits
                return words

    normalizer = EnglishTextNormalizer()
    normalizer.standardize_numbers = Numbers()
    normalizer.standardize_spellings.mapping |= FURTHER_SPELLINGS
    for rule in LATER_RULES:
        del normalizer.replacers[rule]
    return normalizer
