"""The small vocabulary of the text, vision and speech corpora: languages, numbers, colours, shapes and everyday nouns.

Japanese is written in kana, because espeak-ng can't read kanji. Words and number grammars were written for polyphi.

>>> number_words(42, "de"), NOUNS["cat"]["fr"]
('zweiundvierzig', 'chat')
"""

import json
from collections.abc import Mapping
from pathlib import Path

from polyphi.types.transcript import LANGUAGES

Words = dict[str, str]
"""Language code -> word."""


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def _table(name: str) -> dict[str, Words]:
    """Return a table of words: English word -> language code -> word."""
    return {row[0]: dict(zip(_DATA["languages"], row, strict=True)) for row in _DATA[name]}


COLOURS, SHAPES, NOUNS = (_table(name) for name in ("colours", "shapes", "nouns"))
COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    colour: (red, green, blue) for colour, (red, green, blue) in _DATA["colour_rgb"].items()
}
"""The colour value of each colour word in images (sRGB, 0 to 255)."""
YES: Words = _DATA["yes"]
NO: Words = _DATA["no"]
_TO_TWENTY = {language: words.split() for language, words in _DATA["to_twenty"].items()}
_TENS = {language: words.split() for language, words in _DATA["tens"].items()}
_TEN: Words = _DATA["ten"]
_SPANISH_TWENTIES = {int(n): word for n, word in _DATA["spanish_twenties"].items()}


DIGIT_WORDS: dict[str, list[str]] = {language: words[:10] for language, words in _TO_TWENTY.items()}
"""Language code -> the ten words of the digits 0 to 9."""


def number_words(n: int, language: str) -> str:
    """Return the cardinal `n` (0 to 99) in words; Japanese in kana, Portuguese as in Brazil."""
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    if not 0 <= n <= 99:
        raise ValueError(f"expected a number from 0 to 99, found {n}")
    tens, ones = divmod(n, 10)
    small = _TO_TWENTY[language]
    if language in _TEN:
        head = "" if tens == 0 else (small[tens] if tens > 1 else "") + _TEN[language]
        return head + (small[ones] if ones or not tens else "")
    if n < 20:
        return small[n]
    ten = _TENS[language][tens - 2]
    if language == "fr":
        return _french(n, tens, ones, ten)
    if ones == 0:
        return ten
    if language == "en":
        return f"{ten}-{small[ones]}"
    if language == "de":
        return f"{'ein' if ones == 1 else small[ones]}und{ten}"
    if language == "it":
        return (ten[:-1] if ones in (1, 8) else ten) + ("tré" if ones == 3 else small[ones])
    if language == "es":
        return (
            _SPANISH_TWENTIES.get(n, "veinti" + small[ones])
            if tens == 2
            else f"{ten} y {small[ones]}"
        )
    return f"{ten} e {small[ones]}"


def _french(n: int, tens: int, ones: int, ten: str) -> str:
    """Return a French number: 70 and 90 continue sixty and eighty; "et" precedes one and eleven, but not after
    eighty."""
    small = _TO_TWENTY["fr"]
    rest = ones + 10 if tens in (7, 9) else ones
    if rest == 0:
        return "quatre-vingts" if n == 80 else ten
    return f"{ten} et {small[rest]}" if rest in (1, 11) and tens < 8 else f"{ten}-{small[rest]}"


def digit_words(digits: str, language: str) -> str:
    """Return digits spelled one by one, separated by spaces in every language: "42", "fr" -> "quatre deux"."""
    return " ".join(DIGIT_WORDS[language][int(d)] for d in digits)


def lexicon() -> Mapping[str, Words]:
    """Return all colours, shapes and nouns by their English word."""
    return {**COLOURS, **SHAPES, **NOUNS}
