"""Questions that are asked aloud: sums, comparisons, yes or no about numbers, each with its wording in text."""

from collections.abc import Mapping
from random import Random

from polyphi.text.lexicon import number_words

SUMS: Mapping[str, tuple[str, str, str, str]] = {
    # language -> written question ({} is "3 + 4"), spoken question, plus, minus
    "en": ("What is {}?", "What is {}?", "plus", "minus"),
    "fr": ("Combien font {} ?", "Combien font {} ?", "plus", "moins"),
    "de": ("Was ist {}?", "Was ist {}?", "plus", "minus"),
    "it": ("Quanto fa {}?", "Quanto fa {}?", "più", "meno"),
    "pt": ("Quanto é {}?", "Quanto é {}?", "mais", "menos"),
    "es": ("¿Cuánto es {}?", "¿Cuánto es {}?", "más", "menos"),
    "zh": ("{} 等于多少？", "{}等于多少？", "加", "减"),
    "ja": ("{} はいくつですか？", "{}はいくつですか？", "たす", "ひく"),
}
"""Language -> how a sum is asked, in writing and aloud."""


def sum_question(rng: Random, language: str, value: int | None = None) -> tuple[str, str, int]:
    """(written question, spoken question, value) of a sum or a difference of two digits: "What is 3 + 4?"; the text
    corpora ask in the same words. `value` fixes the result (0 to 18)."""
    while True:
        a, b, plus = rng.randrange(10), rng.randrange(10), rng.random() < 0.5
        found = a + b if plus else a - b
        if found >= 0 and (value is None or found == value):
            break
    written_as, spoken_as, more, less = SUMS[language]
    words = f"{number_words(a, language)} {more if plus else less} {number_words(b, language)}"
    return written_as.format(f"{a} {'+' if plus else '-'} {b}"), spoken_as.format(words), found


def comparison(rng: Random, kind: str = "") -> tuple[str, str, str]:
    """(written question, spoken question, answer): "Which is larger, 2 or 9?", of numbers up to 20."""
    a, b = rng.sample(range(21), 2)
    kind = kind or rng.choice(("larger", "smaller"))
    says = "Which is {}, {} or {}?"
    spoken = says.format(kind, number_words(a, "en"), number_words(b, "en"))
    return says.format(kind, a, b), spoken, str(max(a, b) if kind == "larger" else min(a, b))


def yes_no_question(rng: Random, truth: bool) -> tuple[str, str, str]:
    """(written question, spoken question, answer): "Is 7 larger than 4?", of numbers up to 20."""
    kind = rng.choice(("larger", "smaller"))
    a, b = sorted(rng.sample(range(21), 2), reverse=truth == (kind == "larger"))
    spoken = f"Is {number_words(a, 'en')} {kind} than {number_words(b, 'en')}?"
    return f"Is {a} {kind} than {b}?", spoken, "yes" if truth else "no"
