"""Digits and e-mail addresses spelled as in transcripts, in eight languages.

>>> list(numbers("my number is two oh two, double five five oh one four three", "en"))
[(13, 59, '2025550143')]
>>> list(emails("write to john dot smith at example dot com please", "en"))
[(9, 42, 'john.smith@example.com')]

Digits are single, doubled ("double five"), or in pairs ("zéro six douze trente-quatre"), numbers up to 99.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from polyphi.text.scripts import UNSPACED
from polyphi_eval.text.normalization import DIGIT_WORDS
from polyphi_recipe.text import lexicon

MIN_PHONE_DIGITS = 7
"""Minimum digits in a row of a telephone number."""

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_AT: dict[str, str] = _DATA["at"]
_MARKS: dict[str, dict[str, str]] = _DATA["marks"]  # spoken -> written, the dot first
_ENDS = "com|org|net|edu|gov|info|io|co|eu|de|fr|it|es|pt|br|mx|ar|cn|jp|uk|us|ch|ca|コム"
# "look at example dot com" names a site, not a person.
_NOT_A_PERSON = re.compile(
    "look|me|us|it|is|are|was|be|you|here|him|them|meet|visit|find|shop|more|online|stay", re.I
)
_NO_SITE = re.compile("@(?:the|a|an|our|this|that)[.]")
_REPEAT = {"double": 2, "triple": 3}  # English only


def emails(text: str, language: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, address as written) of spelled addresses; none in languages other than the eight."""
    if language not in _AT:
        return
    pattern, at, marks = _email_pattern(language)
    if not marks.search(text):
        return
    for m in pattern.finditer(text):
        if not _NOT_A_PERSON.fullmatch(m["local"]):
            parts = at.split(m[0], maxsplit=1)
            written = "@".join(marks.sub(lambda k: _written(k[0], language), p) for p in parts)
            address = re.sub(r"\s+", "", written).lower().replace("コム", "com")
            if not _NO_SITE.search(address):
                yield m.start(), m.end(), address


def _written(mark: str, language: str) -> str:
    return _MARKS[language][" ".join(mark.lower().split())]


@cache
def _email_pattern(language: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of the whole address, of its "@" and of its marks."""
    spoken = sorted(_MARKS[language], key=len, reverse=True)
    marks = "|".join(re.escape(m).replace(r"\ ", r"\s+") for m in spoken)
    dots = "|".join(m for m, written in _MARKS[language].items() if written == ".")
    at = _AT[language]
    if language in UNSPACED:
        word, gap, edge, end = "[A-Za-z0-9]+?", r"\s*", "(?<![A-Za-z0-9])", "(?![A-Za-z0-9])"
    else:
        word, gap, edge, end = r"[^\W_]+", r"\s+", r"(?<!\w)", r"(?!\w)"
    chain = f"{word}(?:{gap}(?:{marks}){gap}{word}){{0,6}}"
    whole = (
        f"{edge}(?P<local>{chain}){gap}(?:{at}){gap}{chain}{gap}(?:{dots}){gap}(?:{_ENDS})"
        f"(?:{gap}(?:{dots}){gap}(?:{_ENDS}))?{end}"
    )
    outside = (r"(?<!\w)", r"(?!\w)") if language not in UNSPACED else ("", "")
    return (
        re.compile(whole, re.I),
        re.compile(f"{outside[0]}(?:{at}){outside[1]}", re.I),
        re.compile(f"{outside[0]}(?:{marks}){outside[1]}", re.I),
    )


def numbers(text: str, language: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, digits) of runs of at least `MIN_PHONE_DIGITS` digits of which some are spelled; a "plus" in
    front is kept as "+". None in languages other than the eight."""
    if language not in DIGIT_WORDS:
        return
    run, token, value = _number_pattern(language)
    for m in run.finditer(text):
        digits, spelled, repeat = "", False, 1
        for t in token.findall(m[0]):
            word = " ".join(t.lower().replace("-", " ").split())
            if word in _REPEAT:
                repeat = _REPEAT[word]
                continue
            spelled |= not word.isdecimal()
            digits += (word if word.isdecimal() else value[word]) * repeat
            repeat = 1
        if spelled and len(digits.lstrip("+")) >= MIN_PHONE_DIGITS:
            yield m.start(), m.end(), digits


@cache
def _number_pattern(
    language: str,
) -> tuple[re.Pattern[str], re.Pattern[str], dict[str, str]]:
    value = {w.lower(): str(d) for d, forms in enumerate(DIGIT_WORDS[language]) for w in forms}
    value |= {w.lower(): str(d) for d, w in enumerate(lexicon.DIGIT_WORDS[language])}
    if language not in UNSPACED:
        pairs = {lexicon.number_words(n, language): str(n) for n in range(10, 100)}
        value |= {w.lower().replace("-", " "): n for w, n in pairs.items()}
    value |= {"zh": {"幺": "1"}, "ja": {"まる": "0"}}.get(language, {})
    value |= {"più" if language == "it" else {"pt": "mais", "es": "más"}.get(language, "plus"): "+"}
    words = [*value, *(_REPEAT if language == "en" else ())]
    alternatives = "|".join(
        re.escape(w).replace(r"\ ", r"[\s-]") for w in sorted(words, key=len)[::-1]
    )
    if language in UNSPACED:
        token, gap, edge, end = rf"(?:{alternatives}|\d)", r"[\s、，,・のー-]{0,3}", "", ""
    else:
        token = rf"(?<!\w)(?:{alternatives}|\d{{1,4}})(?!\w)"
        gap, edge, end = r"[\s,.-]{1,3}", r"(?<!\w)", r"(?!\w)"
    return (
        re.compile(f"{edge}{token}(?:{gap}{token}){{3,}}{end}", re.I),
        re.compile(token, re.I),
        value,
    )
