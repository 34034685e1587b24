"""Scripts written without spaces between words: languages, and character classes for regular expressions.

>>> re.findall(f"[{HAN}]", "東京へ")
['東', '京']
>>> has_kanji("ひがし"), has_kanji("東の")
(False, True)
"""

import re

UNSPACED = ("zh", "ja")
"""The languages, of the eight, that have no spaces between words. A character has two to three times the content of a
Latin one, so error rates count characters and limits on length are shorter."""

IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""CJK unified and compatibility ideographs with their extensions, as the inside of a regular expression's [...]."""
HAN = f"\u3005-\u3007{IDEOGRAPHS}"
"""IDEOGRAPHS and the signs used among them: 々, 〆 and 〇."""
KANA = "\u3040-\u30ff"
"""Hiragana and katakana with their marks."""
HALF_WIDTH_KANA = "\uff66-\uff9f"
SOUTHEAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""The characters of Thai, Lao, Burmese and Khmer."""
UNSPACED_CHARACTERS = f"{SOUTHEAST_ASIAN}{KANA}{HALF_WIDTH_KANA}{HAN}"
"""The characters of all scripts of this file, as the inside of a regular expression's brackets."""

_HAN = re.compile(f"[{HAN}]")


def has_kanji(text: str) -> bool:
    """Return whether a text has Chinese characters, which espeak-ng can't read in Japanese."""
    return _HAN.search(text) is not None
