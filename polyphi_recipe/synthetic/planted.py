"""Sentences with planted personal information, and look-alikes without any, in eight languages: test data of `pii.py`.

>>> next(cases("en", 1, seed=0))
('I met Hannah Clarke at the station.', [('NAME', 6, 19)])

The names are not taken from the gazetteers; some are of other countries than the sentence. Telephone numbers follow
common formats and may not be in use. Half of the phone, card and e-mail sentences contain the spelled form, without
capitals or full stops, as in transcripts of speech recognition.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from polyphi.text.scripts import UNSPACED
from polyphi_recipe.text.lexicon import LANGUAGES, digit_words

Planted = tuple[str, int, int]

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES: dict[str, list[str]] = _DATA["names"]
"""Language -> eight people."""
_WRITTEN: dict[str, dict[str, list[str]]] = _DATA["written"]
_SPOKEN: dict[str, list[str]] = _DATA["spoken"]  # phone, card, e-mail, "@", "."
_PHONES: dict[str, list[str]] = _DATA["phones"]
_LOOKALIKES: dict[str, list[str]] = _DATA["lookalikes"]
FRESH: dict[str, list[str]] = _DATA["fresh"]
"""Sentences written after `pii.py` was finished and never used to improve it; planted values are [TYPE:value]."""


def cases(language: str, count: int, seed: int = 0) -> Iterator[tuple[str, list[Planted]]]:
    """Yield (sentence, planted values: (entity type, start, end)): `count` sentences of every type, some spelled, then
    each look-alike of the language once, without planted values."""
    rng = Random(f"{seed}:{language}")
    for entity_type, written in _WRITTEN[language].items():
        for _ in range(count):
            frame, value = rng.choice(written), _value(entity_type, language, rng)
            if entity_type in ("PHONE", "CARD", "EMAIL") and rng.random() < 0.5:
                frame, value = _spoken(entity_type, value, language)
            at = frame.index("{}")
            yield frame.format(value), [(entity_type, at, at + len(value))]
    for text in _LOOKALIKES[language]:
        yield text, []


def fresh(language: str) -> Iterator[tuple[str, list[Planted]]]:
    """Yield the sentences of `FRESH`, each with its planted values."""
    for marked in FRESH[language]:
        text, planted = "", list[Planted]()
        # re.split returns (text, entity type, value) in turn.
        pieces = re.split(r"\[([A-Z]+):([^\]]+)\]", marked)
        for plain, entity_type, value in zip(
            pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], ""], strict=True
        ):
            text += plain
            if entity_type:
                planted.append((entity_type, len(text), len(text) + len(value)))
            text += value
        yield text, planted


def _spoken(entity_type: str, value: str, language: str) -> tuple[str, str]:
    phone, card, mail, at, dot = _SPOKEN[language]
    if entity_type == "EMAIL":
        gap = "" if language in UNSPACED else " "
        return mail, value.replace("@", f"{gap}{at}{gap}").replace(".", f"{gap}{dot}{gap}")
    words = digit_words(re.sub(r"\D", "", value), language)
    words = words.replace(" ", "") if language == "zh" else words
    return (phone if entity_type == "PHONE" else card), words


def _value(entity_type: str, language: str, rng: Random) -> str:
    if entity_type == "NAME":
        return rng.choice(NAMES[language])
    if entity_type == "EMAIL":
        user = rng.choice(("anna", "j.smith", "tanaka", "luc.martin", "wei88", "ana.costa"))
        site = rng.choice(("example", "mailbox", "unikoeln", "posta"))
        return f"{user}@{site}.{rng.choice(('com', 'de', 'org', 'jp'))}"
    if entity_type == "PHONE":
        shape = rng.choice(_PHONES[language])
        return "".join(str(rng.randrange(10)) if c == "#" else c for c in shape)
    if entity_type == "IP":
        return ".".join(
            str(rng.choice((81, 93, 151, 203)) if i == 0 else rng.randrange(20, 250))
            for i in range(4)
        )
    if entity_type == "CARD":
        return _card(rng)
    from stdnum import iban

    country, size = rng.choice((("DE", 18), ("NL", 10)))
    account = "".join(rng.choices("0123456789", k=size))
    body = f"ABNA{account}" if country == "NL" else account
    code = iban.calc_check_digits(f"{country}00{body}")
    whole = f"{country}{code}{body}"
    return whole if rng.random() < 0.5 else " ".join(re.findall(".{1,4}", whole))


def _card(rng: Random) -> str:
    from stdnum import luhn

    body = rng.choice(("4539", "5412", "4916")) + "".join(rng.choices("0123456789", k=11))
    digits = body + luhn.calc_check_digit(body)
    return rng.choice(("", " ", "-")).join(re.findall("....", digits))


def measure(
    find: Callable[[str, str], Iterable[Planted]],
    sentences: Callable[[str], Iterable[tuple[str, list[Planted]]]],
) -> dict[tuple[str, str], Counter[str]]:
    """Return (language, entity type) -> how many values were `planted` and `found` (covered whole by a finding of the
    type), and how many findings were `right` (overlap one of the type) and `wrong`. `find(text, language)` returns
    (entity type, start, end); `sentences(language)` is `fresh`, or `cases` with a count."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for language in LANGUAGES:
        for text, planted in sentences(language):
            findings = list(find(text, language))
            for name, start, end in planted:
                hit = any(k == name and a <= start and b >= end for k, a, b in findings)
                counts.setdefault((language, name), Counter()).update(planted=1, found=int(hit))
            for name, start, end in findings:
                touches = any(k == name and a < end and b > start for k, a, b in planted)
                counts.setdefault((language, name), Counter())["right" if touches else "wrong"] += 1
    return counts
