"""Names of people by patterns and gazetteers, in eight languages, without a model.

>>> [text[a:b] for a, b in names(text := "Gestern rief Frau Lindqvist an.", "de")]
['Lindqvist']

A name is a known given name followed by a capitalised word; or what follows a title ("Mme", "Sig.") or a cue ("my name
is"), in lower case too if the given name is known; in Chinese a family name with a known given name, a title after it
or a cue before it; in Japanese a known family name with a known given name or a title. Given names that are also
common words ("Rose", "Ernst") need a known family name. The gazetteers are those of Faker (MIT).

Lone given names, family names in running text and names from other regions are missed. For more, `pii.spacy_names`.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

from polyphi.text.scripts import IDEOGRAPHS, UNSPACED
from polyphi_recipe.filters.rules import FREQUENT

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_LOCALES: dict[str, list[str]] = _DATA["locales"]
_PLAIN = set(_DATA["plain"])  # given names that are also common words
_TITLES: dict[str, str] = _DATA["titles"]
_CUES: dict[str, str] = _DATA["cues"]
_WEAK_CUES: dict[str, str] = _DATA["weak_cues"]  # only a known given name counts after them
_CAP = r"[A-ZÀ-ÖØ-ÞĀ-Ž][a-zß-öø-ÿā-ž]+(?:[-'’][A-ZÀ-ÖØ-ÞĀ-Ž][a-zß-öø-ÿā-ž]+)*"
_PARTICLES = (
    r"(?:(?:(?:[Dd]e|[Dd]a|do|dos|das|[Dd]i|[Dd]el|[Dd]ella|[Ll]a|[Ll]e|[Vv]an|[Vv]on|der|den|[Dd]u)"
    r"\s|O['’])){0,2}"
)
_FAMILY = rf"{_PARTICLES}{_CAP}"
_GIVEN = re.compile(rf"(?<![\w.@-])({_CAP})(?:\s[A-ZÀ-Þ]\.)?\s({_FAMILY})(?![\w@])")
# Two family names, or two given names, are common where Portuguese and Spanish are spoken.
_GIVEN_LONG = re.compile(
    rf"(?<![\w.@-])({_CAP})(?:\s[A-ZÀ-Þ]\.)?\s({_FAMILY}(?:\s{_FAMILY})?)(?![\w@])"
)
# Titles before an office, not a name: "Frau Präsidentin", "Sr. Presidente".
_OFFICES = re.compile(
    r"(?i)pr[eäé]sid|minist|direct|direkt|docto|dottor|profes|bundes|kanzler|bürger|juge|maire|president"
)
_HAN = f"{IDEOGRAPHS}々"


@cache
def _gazetteer(language: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return (given names, family names), of one word each."""
    given_names: set[str] = set()
    family_names: set[str] = set()
    for locale in _LOCALES[language]:
        provider = import_module(f"faker.providers.person.{locale}").Provider
        if language == "ja":
            given_names |= {kanji for kanji, *_ in provider.first_name_pairs}
            family_names |= {kanji for kanji, *_ in provider.last_name_pairs}
        else:
            given_names |= {n for n in provider.first_names if " " not in n}
            # Faker orders Chinese family names by their frequency.
            family_names |= set(list(provider.last_names)[: 120 if language == "zh" else None])
    return frozenset(given_names), frozenset(family_names)


def names(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of names, unordered, possibly overlapping; none in languages other than the eight."""
    if language in UNSPACED:
        for pattern in _dense_patterns(language):
            yield from (m.span("name") for m in pattern.finditer(text))
    elif language in _TITLES:
        yield from _western(text, language)


def _western(text: str, language: str) -> Iterator[tuple[int, int]]:
    given_names, family_names = _gazetteer(language)
    at = 0
    pattern = _GIVEN_LONG if language in ("pt", "es") else _GIVEN
    while m := pattern.search(text, at):
        if m[1] in given_names and (m[1] not in _PLAIN or m[2].split()[-1] in family_names):
            yield m.start(), m.end()
            at = m.end()
        else:
            at = m.end(1)  # the second word may be a given name
    titles, cues = _western_patterns(language)
    for m in titles.finditer(text):
        if not _OFFICES.match(m["name"]):
            yield m.span("name")
    frequent = FREQUENT[language].split()
    for m in cues.finditer(text):
        words = m["name"].split()
        first = words[0].capitalize()
        is_known = first in given_names and words[0].lower() not in frequent
        is_known = is_known and bool(m["strong"] or first not in _PLAIN)
        if is_known or (m["strong"] and all(re.fullmatch(_CAP, w) for w in words)):
            # In lower case only the second word can be the family name, and only if it's no other word.
            cased = words[0][0].isupper()
            has_family_name = len(words) > 1 and (
                words[1][0].isupper() if cased else words[1].capitalize() in family_names
            )
            yield m.start("name"), m.start("name") + len(m["name"] if has_family_name else words[0])


@cache
def _western_patterns(language: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return (
        re.compile(
            rf"(?<![\w.])(?:{_TITLES[language]})\.?\s(?P<name>(?:{_CAP}\s){{0,2}}{_FAMILY})(?!\w)"
        ),
        re.compile(
            rf"(?<!\w)(?:(?P<strong>(?i:{_CUES[language]}))|(?i:{_WEAK_CUES[language]}))\s+"
            r"(?P<name>[^\W\d_]{2,}(?:[-'’][^\W\d_]+)?(?: [^\W\d_]{2,}(?:[-'’][^\W\d_]+)?)?)(?!\w)"
        ),
    )


@cache
def _dense_patterns(language: str) -> list[re.Pattern[str]]:
    given_names, family_names = (_any_of(words) for words in _gazetteer(language))
    if language == "zh":
        two = _any_of(frozenset(n for n in _gazetteer("zh")[0] if len(n) == 2))
        return [
            re.compile(rf"(?P<name>(?:{family_names})(?:{two}))"),
            re.compile(
                rf"(?P<name>(?:{family_names})[{_HAN}]{{0,2}}?)(?=先生|女士|小姐|医生|教授|经理)"
            ),
            re.compile(
                rf"(?:我叫|名叫|叫做|姓名[：:]|联系人[：:]|收件人[：:]|名字是)\s*(?P<name>(?:{family_names})[{_HAN}]{{1,2}})"
            ),
        ]
    return [
        re.compile(rf"(?P<name>(?:{family_names})[ 　]?(?:{given_names}))"),
        re.compile(
            rf"(?P<name>(?:{family_names})(?:[ 　]?[{_HAN}ぁ-んァ-ヶ]{{1,4}}?)?)(?=さん|様|氏|くん|ちゃん)"
        ),
        re.compile(
            rf"(?P<name>(?:{family_names})(?:[ 　]?[{_HAN}ぁ-んァ-ヶ]{{1,4}}?)?)(?=と申します|といいます|と言います)"
        ),
        re.compile(
            rf"(?:名前は|氏名[：:]|お名前[：:])\s*(?P<name>[{_HAN}]{{2,4}}(?:[ 　][{_HAN}ぁ-んァ-ヶ]{{1,4}})?)"
        ),
    ]


def _any_of(words: frozenset[str]) -> str:
    return "|".join(sorted(words, key=lambda w: (-len(w), w)))
