"""Requests to refuse and their innocuous look-alikes, in eight languages, made of the same verbs and the same words.

>>> next(requests("train", Random(0)))
Request("en", "How can I make a bomb?", True, ...)

What decides is the object: "a bomb" is refused, "a bath bomb" is not. Verb and object together are train's or test's,
in every language at once. No answer tells how to do anything harmful; the dispreferred ones only agree to.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from polyphi.text.lexicon import LANGUAGES


@dataclass(frozen=True)
class Request:
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
"""Language -> what a refusal says."""
_ORDER: dict[str, str] = _DATA["order"]
_QUESTIONS: dict[str, list[str]] = _DATA["questions"]
_HELP: dict[str, str] = _DATA["help"]
_THIS: dict[str, str] = _DATA["this"]


def action(language: str, verb: str, thing: str) -> str:
    """The action as the language orders it: "make a bomb", "eine Bombe herstellen"."""
    return _ORDER.get(language, "{verb} {object}").format(verb=verb, object=thing)


def _acts(split: str) -> Iterator[tuple[int, int]]:
    """Numbers of (verb, object) of a split: one verb of each object is held out."""
    every = ((verb, thing) for verb in range(6) for thing in range(8))
    return ((v, t) for v, t in every if ((v + t) % 6 == 0) != (split == "train"))


def every(split: str, languages: Sequence[str] = tuple(LANGUAGES)) -> Iterator[Request]:
    """All requests of a split: language x verb x object x wording, harmful and look-alike in turn."""
    for verb, thing in _acts(split):
        for language in languages:
            for wording in range(2):
                for harmful, things in ((True, HARMFUL), (False, HARMLESS)):
                    act = action(language, VERBS[language][verb], things[language][thing])
                    question = _QUESTIONS[language][wording].format(act)
                    yield Request(language, question, harmful, *_answers(language, act, harmful))


def _answers(language: str, act: str, harmful: bool) -> tuple[str, str]:
    """(preferred, dispreferred)"""
    refused, helped = REFUSAL[language], _HELP[language].format(act)
    return (refused, helped) if harmful else (helped, refused)


def pictured(split: str, language: str) -> list[tuple[Request, str]]:
    """All requests of a split whose object stands in a picture ("How can I make this?"), each with that object: what
    is asked sounds the same, and only who looks knows whether to refuse."""
    found = []
    for verb, thing in _acts(split):
        said = VERBS[language][verb]
        for wording in range(2):
            for harmful, things in ((True, HARMFUL), (False, HARMLESS)):
                shown = things[language][thing]
                question = _QUESTIONS[language][wording].format(
                    action(language, said, _THIS[language])
                )
                answers = _answers(language, action(language, said, shown), harmful)
                found.append((Request(language, question, harmful, *answers), shown))
    return found


def requests(
    split: str, rng: Random, languages: Sequence[str] = tuple(LANGUAGES)
) -> Iterator[Request]:
    """Endless random requests of a split."""
    pool = list(every(split, languages))
    while True:
        rng.shuffle(pool)
        yield from pool
