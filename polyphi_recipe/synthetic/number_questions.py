"""Spoken questions about numbers (sums, comparisons, yes or no), each with its written form."""

from collections.abc import Mapping
from random import Random

from polyphi_recipe.text.lexicon import number_words

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
"""Language -> the written and the spoken question for a sum, and the words for plus and minus."""


def sum_question(rng: Random, language: str, value: int | None = None) -> tuple[str, str, int]:
    """Return (written question, spoken question, value) for a sum or a difference of two digits: "What is 3 + 4?", in
    the words of the text corpora. `value` fixes the result (0 to 18)."""
    while True:
        a, b, plus = rng.randrange(10), rng.randrange(10), rng.random() < 0.5
        result = a + b if plus else a - b
        if result >= 0 and (value is None or result == value):
            break
    written_as, spoken_as, more, less = SUMS[language]
    words = f"{number_words(a, language)} {more if plus else less} {number_words(b, language)}"
    return written_as.format(f"{a} {'+' if plus else '-'} {b}"), spoken_as.format(words), result


def comparison(rng: Random, relation: str = "") -> tuple[str, str, str]:
    """Return (written question, spoken question, answer): "Which is larger, 2 or 9?", of numbers up to 20. `relation`
    is "larger" or "smaller", by default a random one."""
    a, b = rng.sample(range(21), 2)
    relation = relation or rng.choice(("larger", "smaller"))
    template = "Which is {}, {} or {}?"
    spoken = template.format(relation, number_words(a, "en"), number_words(b, "en"))
    return (
        template.format(relation, a, b),
        spoken,
        str(max(a, b) if relation == "larger" else min(a, b)),
    )


def yes_no_question(rng: Random, truth: bool) -> tuple[str, str, str]:
    """Return (written question, spoken question, answer): "Is 7 larger than 4?", of numbers up to 20."""
    relation = rng.choice(("larger", "smaller"))
    a, b = sorted(rng.sample(range(21), 2), reverse=truth == (relation == "larger"))
    spoken = f"Is {number_words(a, 'en')} {relation} than {number_words(b, 'en')}?"
    return f"Is {a} {relation} than {b}?", spoken, "yes" if truth else "no"
