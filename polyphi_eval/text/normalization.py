"""Text normalization for evaluation, and error rates of normalized texts.

>>> normalize("Don't  PANIC!")
'dont panic'
>>> errors(words("one two three"), words("one three")).rate
0.3333333333333333

The few rules are the same for all eight languages: compatibility forms folded (NFKC), case folded, punctuation and
symbols removed, diacritics kept. The units of Chinese and Japanese, which are written without spaces, are characters:
their "word" error rate is a character error rate (as in the report's Table 4).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from polyphi.text.scripts import UNSPACED

_FORMS = {
    "en": "zero/oh one two three four five six seven eight nine",
    "fr": "zéro un/une deux trois quatre cinq six sept huit neuf",
    "de": "null eins/ein/eine zwei/zwo drei vier fünf sechs sieben acht neun",
    "it": "zero uno/una due tre quattro cinque sei sette otto nove",
    "es": "cero uno/una/un dos tres cuatro cinco seis siete ocho nueve",
    "pt": "zero um/uma dois/duas três quatro cinco seis/meia sete oito nove",
    "zh": "零/〇 一 二/两 三 四 五 六 七 八 九",
    "ja": "ゼロ/れい/零 いち/一 に/二 さん/三 よん/四 ご/五 ろく/六 なな/しち/七 はち/八 きゅう/く/九",
}
DIGIT_WORDS = {
    language: tuple(tuple(d.split("/")) for d in forms.split())
    for language, forms in _FORMS.items()
}
"""Spoken digits 0 to 9 in all common forms, by language."""

_JOINERS = {"'", "’", "ʼ"}
NUMBER = re.compile(r"(?<![\d.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?")


def normalize(text: str, language: str = "en") -> str:
    """Return `text` without case, punctuation and symbols, with single spaces; in unspaced languages without spaces.

    An apostrophe inside a word joins in English ("don't" -> "dont") and splits elsewhere ("l'eau" -> "l eau"). Decimal
    points and minus signs of numbers are kept ("-3.5"), thousands separators are removed.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    out: list[str] = []
    for i, c in enumerate(text):
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        point = c == "." and before.isdigit() and after.isdigit()
        minus = c == "-" and after.isdigit() and not before.strip()
        if point or minus or unicodedata.category(c)[0] not in "PSZC":
            out.append(c)
        elif c not in _JOINERS or language != "en":
            out.append(" ")
    return ("" if language in UNSPACED else " ").join("".join(out).split())


def words(text: str, language: str = "en") -> list[str]:
    """Return the units of a word error rate: normalized words, or characters in unspaced languages."""
    text = normalize(text, language)
    return list(text) if language in UNSPACED else text.split()


def characters(text: str, language: str = "en") -> list[str]:
    """Return the units of a character error rate: normalized characters, without spaces."""
    return [c for c in normalize(text, language) if c != " "]


def digits(text: str, language: str = "en") -> str:
    """Return the digits of a text in order, spelled ones included: digits("7, one 3") = "713"; digits("deux cinq",
    "fr") = "25"."""
    spelled = {w: str(d) for d, forms in enumerate(DIGIT_WORDS.get(language, ())) for w in forms}
    text = unicodedata.normalize("NFKC", text).casefold()
    if language in UNSPACED:
        alternatives = "|".join(sorted(spelled, key=len, reverse=True))
        return "".join(spelled.get(m, m) for m in re.findall(rf"\d|{alternatives}", text))
    parts = (spelled.get(w, w if w.isdecimal() else "") for w in re.findall(r"\d+|[^\W\d_]+", text))
    return "".join(parts)


def numbers(text: str, language: str = "en") -> list[float]:
    """Return the numbers of a text in order; without written digits the spelled ones count ("three" -> 3)."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-")
    # A minus directly after a word is a subtraction or a dash: "9-4" contains 9 and 4.
    text = re.sub(r"(?<=[\w)])-(?=\d)", " ", text)
    if values := [float(m.replace(",", "")) for m in NUMBER.findall(text)]:
        return values
    return [float(d) for d in digits(text, language)]


@dataclass(frozen=True)
class Errors:
    """Edits between a hypothesis and its reference of `units` words or characters."""

    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of the reference; may exceed 1. An empty reference counts as one unit."""
        return self.total / max(1, self.units)


def errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Return the fewest edits between two lists of units (alignment by jiwer, the `eval` extra). Units have no
    spaces."""
    if not reference or not hypothesis:
        return Errors(0, len(reference), len(hypothesis), len(reference))
    try:
        import jiwer
    except ImportError as e:
        raise ValueError(
            "error rates need jiwer, which is not installed; the extra eval brings it (docs/install.md)"
        ) from e
    plain = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])
    alignment = jiwer.process_words(
        " ".join(reference),
        " ".join(hypothesis),
        reference_transform=plain,
        hypothesis_transform=plain,
    )
    return Errors(
        alignment.substitutions, alignment.deletions, alignment.insertions, len(reference)
    )


def wer(reference: str, hypothesis: str, language: str = "en") -> float:
    """Word error rate after normalization, 0 is perfect; by characters for Chinese and Japanese."""
    return errors(words(reference, language), words(hypothesis, language)).rate


def cer(reference: str, hypothesis: str, language: str = "en") -> float:
    """Character error rate after normalization, spaces not counted."""
    return errors(characters(reference, language), characters(hypothesis, language)).rate
