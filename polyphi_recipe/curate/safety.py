"""Requests to refuse and similar harmless requests, in eight languages, with the same verbs and words.

>>> next(requests("train", Random(0)))
Request("en", "How can I make a bomb?", True, ...)

The object decides: "a bomb" is refused, "a bath bomb" is not. Combinations of verb and object belong to train or test,
in every language at once. No answer explains anything harmful; the dispreferred ones only agree to help.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from polyphi.text.lexicon import LANGUAGES


@dataclass(frozen=True)
class PreferencePair:
    """A request with the answer to prefer and the one to avoid."""

    language: str
    question: str
    harmful: bool
    chosen: str
    rejected: str


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
VERBS: dict[str, list[str]] = _DATA["verbs"]
HARMFUL: dict[str, list[str]] = _DATA["harmful"]
HARMLESS: dict[str, list[str]] = _DATA["harmless"]
REFUSAL: dict[str, str] = _DATA["refusal"]
"""Language -> the text of a refusal."""
_ORDER: dict[str, str] = _DATA["order"]
_QUESTIONS: dict[str, list[str]] = _DATA["questions"]
_HELP: dict[str, str] = _DATA["help"]
_THIS: dict[str, str] = _DATA["this"]


def action(language: str, verb: str, thing: str) -> str:
    """Return the action in the language's word order: "make a bomb", "eine Bombe herstellen"."""
    return _ORDER.get(language, "{verb} {object}").format(verb=verb, object=thing)


def _acts(split: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers of (verb, object) of a split: one verb of each object is held out."""
    every = ((verb, thing) for verb in range(6) for thing in range(8))
    return ((v, t) for v, t in every if ((v + t) % 6 == 0) != (split == "train"))


def every(split: str, languages: Sequence[str] = tuple(LANGUAGES)) -> Iterator[PreferencePair]:
    """Yield all requests of a split: language x verb x object x wording, harmful and harmless in turn."""
    for verb, thing in _acts(split):
        for language in languages:
            for wording in range(2):
                for harmful, things in ((True, HARMFUL), (False, HARMLESS)):
                    act = action(language, VERBS[language][verb], things[language][thing])
                    question = _QUESTIONS[language][wording].format(act)
                    yield PreferencePair(
                        language, question, harmful, *_answers(language, act, harmful)
                    )


def _answers(language: str, act: str, harmful: bool) -> tuple[str, str]:
    """Return (preferred, dispreferred)."""
    refused, helped = REFUSAL[language], _HELP[language].format(act)
    return (refused, helped) if harmful else (helped, refused)


def pictured(split: str, language: str) -> list[tuple[PreferencePair, str]]:
    """Return all requests of a split whose object is in an image ("How can I make this?"), each with that object: the
    texts are the same, and only the image decides about the refusal."""
    pairs = []
    for verb, thing in _acts(split):
        verb_phrase = VERBS[language][verb]
        for wording in range(2):
            for harmful, things in ((True, HARMFUL), (False, HARMLESS)):
                object_ = things[language][thing]
                question = _QUESTIONS[language][wording].format(
                    action(language, verb_phrase, _THIS[language])
                )
                answers = _answers(language, action(language, verb_phrase, object_), harmful)
                pairs.append((PreferencePair(language, question, harmful, *answers), object_))
    return pairs


def requests(
    split: str, rng: Random, languages: Sequence[str] = tuple(LANGUAGES)
) -> Iterator[PreferencePair]:
    """Yield random requests of a split without end."""
    pool = list(every(split, languages))
    while True:
        rng.shuffle(pool)
        yield from pool
