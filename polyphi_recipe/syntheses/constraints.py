"""Constraints on an answer that a program can check: its length, its form, what it says and doesn't say.

>>> CONSTRAINTS["words_at_most"].accepts("Three short words.", 3, "")
True

They are of the kind that IFEval has, in other words and with other parameters (report 3.1.2, Table 7).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyphi_recipe.filters.language import identify
from polyphi_recipe.syntheses.syntheses import words
from polyphi_recipe.text.lexicon import LANGUAGES

_CODES = {name: code for code, name in LANGUAGES.items()}


@dataclass(frozen=True)
class Constraint:
    """A constraint on an answer: its description for a teacher, with N for its number and T for its text, and a
    function that checks an answer by both."""

    description: str
    accepts: Callable[[str, int, str], bool]

    @property
    def has_number(self) -> bool:
        return "N" in self.description.split()

    @property
    def has_text(self) -> bool:
        return '"T"' in self.description


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _sentences(text: str) -> int:
    return len([s for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text) if s.strip()])


def _says(answer: str, text: str) -> bool:
    return f" {' '.join(words(text))} " in f" {' '.join(words(answer))} "


def _is_json(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict)
    except ValueError:
        return False


CONSTRAINTS: dict[str, Constraint] = {
    "words_at_most": Constraint("at most N words", lambda a, n, t: 0 < len(words(a)) <= n),
    "words_at_least": Constraint("at least N words", lambda a, n, t: len(words(a)) >= n > 0),
    "sentences": Constraint("exactly N sentences", lambda a, n, t: _sentences(a) == n),
    "bullets": Constraint(
        'exactly N lines, each of which starts with "- "',
        lambda a, n, t: len(_lines(a)) == n and all(x.startswith("- ") for x in _lines(a)),
    ),
    "paragraphs": Constraint(
        "exactly N paragraphs, with an empty line between them",
        lambda a, n, t: len([p for p in re.split(r"\n\s*\n", a) if p.strip()]) == n,
    ),
    "includes": Constraint('says "T"', lambda a, n, t: bool(t) and _says(a, t)),
    "avoids": Constraint('never says "T"', lambda a, n, t: bool(t) and not _says(a, t)),
    "starts_with": Constraint('starts with "T"', lambda a, n, t: bool(t) and a.startswith(t)),
    "ends_with": Constraint('ends with "T"', lambda a, n, t: bool(t) and a.rstrip().endswith(t)),
    "language": Constraint(
        f'is written in the language "T" (one of {", ".join(LANGUAGES.values())})',
        lambda a, n, t: identify(a)[0] == _CODES.get(t),
    ),
    "no_commas": Constraint("has no commas", lambda a, n, t: "," not in a and "，" not in a),
    "lower_case": Constraint("has small letters only", lambda a, n, t: a == a.lower()),
    "json": Constraint("is a JSON object and nothing else", lambda a, n, t: _is_json(a)),
}
FORMS = ("words_at_most", "words_at_least", "sentences", "bullets", "paragraphs", "json")
CONTENTS = (
    *("includes", "avoids", "starts_with", "ends_with", "language", "no_commas", "lower_case"),
)
"""Constraints of which one of each is asked for: two of a kind often exclude each other."""


def violation(instruction: str, answer: str, constraint: dict[str, Any]) -> str:
    """Return why a constraint (`type`, `number`, `text`) isn't stated in the instruction or satisfied by the answer,
    or ""."""
    kind, number, text = constraint["type"], constraint["number"], constraint["text"]
    rule = CONSTRAINTS[kind]
    if rule.has_number and not re.search(rf"(?<!\d){number}(?!\d)", instruction):
        return f"the instruction doesn't state the number of {kind}"
    if rule.has_text and text.casefold() not in instruction.casefold():
        return f"the instruction doesn't state the text of {kind}"
    return "" if rule.accepts(answer, number, text) else f"the answer violates {kind}"
