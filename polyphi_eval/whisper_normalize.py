"""Whisper's text normalizers, for the word error rates of the report's Tables 3 and 4.

>>> english("Mr. Quilter's colours cost twenty-one dollars, um!")
'mister quilter is colors cost $21'
>>> basic("Où est l'été?")
'où est l été '
>>> basic("你好。", split_letters=True)
'你 好 '

`english` is the Open ASR Leaderboard's version of 11 September 2023 to 5 August 2025, which the report used: Whisper's
rules, its table of British and American spellings (`english_spellings.json`, third-party data, unchanged) and one more
spelling. Later versions remove more words, so that their numbers aren't comparable.

Both return the same strings as `transformers.models.whisper.english_normalizer`, including its errors ("point hundred"
loses its point, "ninth" isn't a number), but take linear time and never raise.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

SPELLINGS = Path(__file__).parent / "english_spellings.json"
FURTHER_SPELLINGS = {"mm": "hmm"}
"""The leaderboard's additions to Whisper's table."""

_SQUARE, _ROUND = re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+\)")
_FILLERS = re.compile(r"\b(?:hmm|mm|mhm|mmm|uh|um)\b")
_WHOLE_WORDS = """
    won't=will not, can't=can not, let's=let us, ain't=aint, y'all=you all, wanna=want to, gotta=got to, gonna=going to,
    i'ma=i am going to, imma=i am going to, woulda=would have, coulda=could have, shoulda=should have, ma'am=madam
"""
_TITLES = """
    mr=mister, mrs=missus, st=saint, dr=doctor, prof=professor, capt=captain, gov=governor, ald=alderman, gen=general,
    sen=senator, rep=representative, pres=president, rev=reverend, hon=honorable, asst=assistant, assoc=associate,
    lt=lieutenant, col=colonel, jr=junior, sr=senior, esq=esquire
"""
_ENDINGS = """
    'd been=had been, 's been=has been, 'd gone=had gone, 's gone=has gone, 'd done=had done, 's got=has got,
    n't=not, 're=are, 's=is, 'd=would, 'll=will, 't=not, 've=have, 'm=am
"""
_LETTERS = """
    œ=oe, Œ=OE, ø=o, Ø=O, æ=ae, Æ=AE, ß=ss, ẞ=SS, đ=d, Đ=D, ð=d, Ð=D, þ=th, Þ=th, ł=l, Ł=L
"""
"""Letters that aren't decomposed by compatibility normalization."""
_OF_NUMBERS = ".%$¢€£"
"""Symbols that are kept until numbers are parsed."""


def _pairs(table: str) -> Iterator[tuple[str, str]]:
    for entry in table.split(","):
        written, _, spoken = entry.strip().partition("=")
        yield written, spoken


_FOLDED = dict(_pairs(_LETTERS))

_RULES = [
    *((re.compile(rf"\b{written}\b"), spoken) for written, spoken in _pairs(_WHOLE_WORDS)),
    *((re.compile(rf"\b{written}\b"), f"{spoken} ") for written, spoken in _pairs(_TITLES)),
    *((re.compile(rf"{written}\b"), f" {spoken}") for written, spoken in _pairs(_ENDINGS)),
]
"""Applied in this order: a rule may match the output of an earlier one."""


def basic(text: str, split_letters: bool = False) -> str:
    """Normalize a text: lower case, no text in brackets, no punctuation and symbols; diacritics are kept. With
    `split_letters` a space follows every letter, so that a word error rate counts characters (Chinese, Japanese)."""
    text = _without_brackets(text.lower())
    text = "".join(
        " " if unicodedata.category(c)[0] in "MSP" else c
        for c in unicodedata.normalize("NFKC", text)
    ).lower()
    if split_letters:
        import regex

        text = " ".join(regex.findall(r"\X", text))
    return re.sub(r"\s+", " ", text)


def english(text: str) -> str:
    """Normalize an English text: lower case, no brackets, fillers, diacritics, punctuation and symbols; expanded
    contractions and titles, numbers in digits, American spellings."""
    text = _FILLERS.sub("", _without_brackets(text.lower()))
    text = re.sub(r"(?<!\s)\s+'", "'", text)
    for pattern, spoken in _RULES:
        text = pattern.sub(spoken, text)
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    text = numbers(_plain(text))
    spellings = _spellings()
    text = " ".join(spellings.get(word, word) for word in text.split())
    # Remove symbols of numbers that aren't next to a number.
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    text = re.sub(r"([^0-9])%", r"\1 ", text)
    return re.sub(r"\s+", " ", text)


def _without_brackets(text: str) -> str:
    for pattern, closing in ((_SQUARE, ">]"), (_ROUND, ")")):
        # Nothing matches after the last closing bracket, and searching there would take quadratic time.
        end = 1 + max(text.rfind(c) for c in closing)
        text = pattern.sub("", text[:end]) + text[end:]
    return text


def _plain(text: str) -> str:
    """Remove diacritics; replace punctuation and symbols, except those of numbers, by spaces."""
    out = []
    for c in unicodedata.normalize("NFKD", text):
        kind = unicodedata.category(c)
        if c in _OF_NUMBERS:
            out.append(c)
        elif c in _FOLDED:
            out.append(_FOLDED[c])
        elif kind != "Mn":
            out.append(" " if kind[0] in "MSP" else c)
    return "".join(out)


@cache
def _spellings() -> dict[str, str]:
    return {**json.loads(SPELLINGS.read_text(encoding="utf-8")), **FURTHER_SPELLINGS}


# Numbers --------------------------------------------------------------------------------------------------

_NAMES = """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen
"""
_NAMES_OF_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NAMES_OF_SCALES = """
    thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion
"""
_UNITS = {name: value for value, name in enumerate(_NAMES.split(), start=1)}
_TENS = {name: 10 * value for value, name in enumerate(_NAMES_OF_TENS.split(), start=2)}
_SCALES = {"hundred": 100}
_SCALES |= {name: 1000**power for power, name in enumerate(_NAMES_OF_SCALES.split(), start=1)}
_ZEROS = {"o", "oh", "zero"}
_IRREGULAR = {"first": 1, "second": 2, "third": 3, "fifth": 5, "twelfth": 12}
_SUFFIXED = {
    "zeroth": (0, "th"),
    "sixes": (6, "s"),
    **{f"{name}s": (value, "s") for name, value in (_UNITS | _SCALES).items() if name != "six"},
    **{
        name + ("h" if name.endswith("t") else "th"): (value, "th")
        for name, value in (_UNITS | _SCALES).items()
        if value not in _IRREGULAR.values()
    },
    **{name[:-1] + "ies": (value, "s") for name, value in _TENS.items()},
    **{name[:-1] + "ieth": (value, "th") for name, value in _TENS.items()},
    **{
        name: (value, {1: "st", 2: "nd", 3: "rd"}.get(value, "th"))
        for name, value in _IRREGULAR.items()
    },
}
_SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
_CURRENCIES = {"pound": "£", "euro": "€", "dollar": "$", "cent": "¢"}
_CURRENCIES |= {f"{name}s": sign for name, sign in _CURRENCIES.items()}
_PREFIXES = {*_SIGNS.values(), *_CURRENCIES.values()}
_REPEATS = {"double": 2, "triple": 3}
_DECIMALS = {*_UNITS, *_TENS, *_ZEROS}
_WORDS = {
    *_DECIMALS,
    *_SCALES,
    *_SUFFIXED,
    *_SIGNS,
    *_CURRENCIES,
    *_REPEATS,
    "per",
    "percent",
    "and",
    "point",
}
_NUMERAL = re.compile(r"\d+(?:\.\d+)?")
_LONGEST = 1000
"""Most digits of a number; longer ones are treated as words, since Python limits the conversion."""


def numbers(text: str) -> str:
    """Replace spoken numbers of a lower-case text without punctuation by digits: "one oh one" -> "101", "twenty first"
    -> "21st", "three dollars and five cents" -> "$3.05"; "one" and "ones" stay words."""
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", _halves(text))
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    text = re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)
    text = " ".join(_Reader().read(text.split()))
    text = re.sub(
        r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text
    )
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)


def _halves(text: str) -> str:
    """ "two and a half" -> "two point five"."""
    *parts, last = re.split(r"\band\s+a\s+half\b", text)
    out = []
    for part in parts:
        if part.strip():
            is_number = part.split()[-1] in _DECIMALS | _SCALES.keys()
            out += [part, "point five" if is_number else "and a half"]
    return " ".join([*out, last] if last.strip() else out)


class _Reader:
    """A parser of words from left to right. `value` is the number so far: an int while it can still be added to, text
    once digits follow digits ("nineteen ninety" -> "1990"); `prefix` is its sign."""

    def __init__(self) -> None:
        self.output: list[str] = []
        self.value: int | str | None = None
        self.prefix = ""

    def read(self, words: list[str]) -> list[str]:
        skip = False
        for i, word in enumerate(words):
            if skip:
                skip = False
                continue
            before = words[i - 1] if i else ""
            after = words[i + 1] if i + 1 < len(words) else ""
            skip = self._word(word, before, after)
        self._flush()
        return self.output

    def _write(self, word: str) -> None:
        self.output.append(self.prefix + word)
        self.value, self.prefix = None, ""

    def _flush(self) -> None:
        if self.value is not None:
            self._write(str(self.value))

    def _word(self, word: str, before: str, after: str) -> bool:
        """Parse a word; return whether the next word is consumed, too."""
        number_follows = after in _WORDS or _NUMERAL.fullmatch(after) is not None
        bare = word[1:] if word[0] in _PREFIXES else word
        if _NUMERAL.fullmatch(bare) and (number := _fraction(bare)) is not None:
            self._numeral(word, bare, number)
        elif word in _ZEROS:
            self.value = f"{self.value or ''}0"
        elif word in _UNITS:
            self.value = self._with_unit(_UNITS[word], before)
        elif word in _TENS:
            self.value = self._with_ten(_TENS[word])
        elif word in _SCALES:
            self.value = self._scaled(_SCALES[word])
        elif word in _SUFFIXED:
            value, suffix = _SUFFIXED[word]
            if value in _SCALES.values():
                self.value = self._scaled(value)
            elif value in _TENS.values():
                self.value = self._with_ten(value)
            else:
                self.value = self._with_unit(value, before)
            self._write(f"{self.value}{suffix}")
        elif word in _SIGNS and number_follows:
            self._flush()
            self.prefix = _SIGNS[word]
        elif word in _CURRENCIES and self.value is not None:
            self.prefix = _CURRENCIES[word]
            self._flush()
        elif self.value is not None and (word == "percent" or (word, after) == ("per", "cent")):
            self._write(f"{self.value}%")
            return word == "per"
        elif word == "and" and before in _SCALES and number_follows:
            pass
        elif word in _REPEATS and (after in _UNITS or after in _ZEROS):
            self.value = f"{self.value or ''}{str(_UNITS.get(after, 0)) * _REPEATS[word]}"
            return True
        elif word == "point" and number_follows:
            if after in _DECIMALS or _NUMERAL.fullmatch(after):
                self.value = f"{self.value or ''}."
        else:
            self._flush()
            self._write(word)
        return False

    def _numeral(self, word: str, bare: str, number: Fraction) -> None:
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word
            return
        self._flush()
        self.prefix = word.removesuffix(bare) or self.prefix
        self.value = number.numerator if number.denominator == 1 else bare

    def _with_unit(self, unit: int, before: str) -> int | str:
        if self.value is None:
            return unit
        if isinstance(self.value, str) or before in _UNITS:
            if before in _TENS and unit < 10:
                return str(self.value)[:-1] + str(unit)
            return f"{self.value}{unit}"
        return self._joined(unit, 10 if unit < 10 else 100)

    def _with_ten(self, ten: int) -> int | str:
        return ten if self.value is None else self._joined(ten, 100)

    def _joined(self, number: int, modulus: int) -> int | str:
        """Add a number if the value has zeros in its digits; otherwise append its digits."""
        if isinstance(self.value, int) and self.value % modulus == 0:
            return self.value + number
        return f"{self.value}{number}"

    def _scaled(self, scale: int) -> int:
        if self.value is None:
            return scale
        if isinstance(self.value, int) and self.value:
            return self.value // 1000 * 1000 + self.value % 1000 * scale
        number = _fraction(str(self.value))
        if number is not None and (number * scale).denominator == 1:
            return (number * scale).numerator
        self._flush()
        return scale


def _fraction(text: str) -> Fraction | None:
    """Return the number of a text of digits and points; None if it isn't one."""
    try:
        return Fraction(text) if len(text) <= _LONGEST else None
    except ValueError:
        return None
