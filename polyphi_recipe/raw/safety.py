"""Requests to refuse and similar harmless requests, in eight languages, with the same verbs and words.

>>> next(requests("train", Random(0)))
PreferencePair("en", "How can I hide a bomb in a church?", True, ...)

The object decides: "a bomb" is refused, "a bath bomb" is not. A test request has an object that training doesn't have,
in any language: its thing and its verb are never combined in training, and its place never occurs there. No answer
explains anything harmful; the dispreferred ones only agree to help.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from polyphi_recipe.text.lexicon import LANGUAGES


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
PLACES: dict[str, list[str]] = _DATA["places"]
TEST_PLACES = 4
"""The last places of each language, which only test requests have."""
REFUSAL: dict[str, str] = _DATA["refusal"]
"""Language -> the text of a refusal."""
_ORDER: dict[str, str] = _DATA["order"]
_QUESTIONS: dict[str, list[str]] = _DATA["questions"]
HELP: dict[str, str] = _DATA["help"]
"""Language -> the beginning of an answer that helps, whatever was asked for."""
_THIS: dict[str, str] = _DATA["this"]


def action(language: str, verb: str, thing: str, place: str = "") -> str:
    """Return the action in the language's word order: "make a bomb", "eine Bombe in einem Zug verstecken"."""
    order = _ORDER.get(language, "{verb} {object} {place}")
    return " ".join(order.format(verb=verb, object=thing, place=place).split())


@dataclass(frozen=True)
class Act:
    """Indices of a verb, a thing and a place (None for no place)."""

    verb: int
    thing: int
    place: int | None


def _acts(split: str) -> Iterator[Act]:
    """Yield the acts of a split: one verb of each thing, and some places, are held out."""
    verbs, things = len(VERBS["en"]), len(HARMFUL["en"])
    known = len(PLACES["en"]) - TEST_PLACES
    places = [None, *range(known)] if split == "train" else range(known, known + TEST_PLACES)
    for verb in range(verbs):
        for thing in range(things):
            if ((verb + thing) % verbs == 0) != (split == "train"):
                yield from (Act(verb, thing, place) for place in places)


def every(split: str, languages: Sequence[str] = tuple(LANGUAGES)) -> Iterator[PreferencePair]:
    """Yield all requests of a split: language x act x wording, harmful and harmless in turn."""
    for act in _acts(split):
        for language in languages:
            for wording in range(len(_QUESTIONS[language])):
                for harmful in (True, False):
                    yield _request(language, act, wording, harmful)


def _request(
    language: str, act: Act, wording: int, harmful: bool, object_in_image: bool = False
) -> PreferencePair:
    verb = VERBS[language][act.verb]
    place = "" if act.place is None else PLACES[language][act.place]
    object_name = _THIS[language] if object_in_image else _thing(language, act, harmful)
    question = _QUESTIONS[language][wording].format(action(language, verb, object_name, place))
    chosen, rejected = REFUSAL[language], HELP[language]
    if not harmful:
        chosen, rejected = rejected, chosen
    return PreferencePair(language, question, harmful, chosen, rejected)


def _thing(language: str, act: Act, harmful: bool) -> str:
    return (HARMFUL if harmful else HARMLESS)[language][act.thing]


def things(language: str) -> list[str]:
    """Return the harmful things of a language and the harmless ones that look like them."""
    return [*HARMFUL[language], *HARMLESS[language]]


def pictured(split: str, language: str, harmful: bool) -> list[tuple[PreferencePair, str]]:
    """Return all harmful or harmless requests of a split whose thing is in an image ("How can I make this?"), each with
    that thing: the texts of both are the same, and only the image decides about the refusal."""
    return [
        (
            _request(language, act, wording, harmful, object_in_image=True),
            _thing(language, act, harmful),
        )
        for act in _acts(split)
        for wording in range(len(_QUESTIONS[language]))
    ]


def requests(
    split: str, rng: Random, languages: Sequence[str] = tuple(LANGUAGES)
) -> Iterator[PreferencePair]:
    """Yield random requests of a split without end."""
    pool = list(every(split, languages))
    while True:
        rng.shuffle(pool)
        yield from pool
