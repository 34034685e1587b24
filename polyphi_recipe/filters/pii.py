"""Personal information in text and transcripts: finds it, and replaces it or drops the document.

>>> remove("Call me: 415-555-2671, or write to ada@lovelace.org", "en")
('Call me: [PHONE], or write to [EMAIL]', Counter({'PHONE': 1, 'EMAIL': 1}))
>>> remove("write to ada@lovelace.org", "en", fake=Fakes(seed=0))[0]     # the same address gets the same fake
'write to jennifer96@example.net'

    type    how it is recognized
    EMAIL   pattern; in transcripts "ada dot lovelace at example dot com" (`spoken_forms.py`)
    IBAN    pattern, country's layout and check digits (python-stdnum)
    CARD    13 to 19 digits, an issuer's prefix, Luhn's check digit; also spelled
    IP      pattern, public addresses only (as in datatrove); not after "version"
    PHONE   a valid number of a country where the language is spoken (phonenumbers), and one of: a plus, a cue ("Tel."),
            a grouping that isn't that of thousands; not after "order", "invoice" and the like; also spelled
    NAME    patterns and gazetteers (`names.py`), or any recognizer that is passed in

Why these libraries: presidio-analyzer has good pattern recognizers, but each install of it installs spaCy and its
numerics (21 packages), and its names need a spaCy model, so it isn't a dependency; `spacy_names` takes the user's
model. datatrove's PIIFormatter finds addresses only, none in Chinese or Japanese (its pattern needs a word boundary
before them), takes 1.2.3.4 out of version 1.2.3.4.5, and returns no types to count.

For recall and precision on planted cases see `experiments/curation/text.py pii` and docs/curation_numbers.md. Images
and recordings are not searched. Texts beside a recording are never changed, since the voice says what they say
(`PiiFilter`).
"""

import hashlib
import ipaddress
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from polyphi.text.scripts import UNSPACED
from polyphi_recipe.filters import spoken_forms
from polyphi_recipe.filters.language import language_of
from polyphi_recipe.filters.names import names
from polyphi_recipe.pipeline.documents import edit, note

ENTITY_TYPES = ("EMAIL", "IBAN", "CARD", "IP", "PHONE", "NAME")
"""Types of personal information in order of precedence: of two entities that overlap the first is kept."""
REGIONS = {
    "en": ("US", "GB"),
    "zh": ("CN",),
    "fr": ("FR",),
    "de": ("DE", "AT", "CH"),
    "it": ("IT",),
    "ja": ("JP",),
    "pt": ("BR", "PT"),
    "es": ("ES", "MX"),
}
"""Language -> countries whose telephone numbers are recognized without their +code."""

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d]|[.,-]\d)")
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|35\d{14}|6(?:011|2|5)\d{12,17}"
)
"""Prefix and length of card numbers of Visa; Mastercard; American Express; JCB; Discover and UnionPay."""
_IP4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(r"(?<![\w.,/+-])(?:\+\d|\(\+?\d|\d)[\d\s().\-/]{5,20}\d(?![\w]|[.,-]\d)", re.A)
_NO_PHONE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2}))(?!\d|[-/.]\d)"  # a date
    r"|(?:19|20)\d\d ?- ?(?:19|20)\d\d$|\d+\.\d+$"  # years, a decimal number
)
_CUE = re.compile(
    r"(?i)\btel|phone|\bcall|mobile|\bcell|\bfax|whatsapp|t[ée]l[ée]phon|appel|portable|joindre|telefon|handy"
    r"|rückruf|\bruf|cellulare|chiam|celular|ligu|ligar|móvil|ll[aá]m|reach me|my number|mon numéro|meine nummer"
    r"|mio numero|meu número|mi número|电话|手机|致电|拨打|号码|電話|携帯|連絡"
)
_OTHER = re.compile(
    r"(?i)order|invoice|isbn|version|build|ticket|serial|\bref|rfc|item|tracking|bestell|rechnung|auftrag|artikel"
    r"|commande|facture|ordin|fattura|pedido|encomenda|fatura|factura|订单|版本|编号|発票|注文|請求|バージョン|型番|伝票"
)
_VERSION = re.compile(
    r"(?i)(?:\bv|version|versão|versione|versión|build|release|版本|バージョン)[\s.:]*$"
)
BEFORE = 32
"""Characters before a number in which a cue is searched for."""

Recognise = Callable[[str], Iterable[tuple[int, int, str]]]
"""Returns (start, end, entity type) of what a recognizer finds in a text."""


@dataclass(frozen=True)
class Entity:
    """`text[start:end]` is an entity; `value` is independent of the spelling ("+14155552671", spelled or not)."""

    entity_type: str
    start: int
    end: int
    value: str


def find(
    text: str,
    language: str,
    types: Sequence[str] = ENTITY_TYPES,
    recognise: Recognise | None = None,
) -> list[Entity]:
    """Return the personal information of a text, in order, without overlaps. In languages other than the eight: no
    names, no spelled forms, and only telephone numbers with a plus. Raises ValueError for unknown entity types."""
    if unknown := set(types) - set(ENTITY_TYPES):
        raise ValueError(f"expected types of {', '.join(ENTITY_TYPES)}, found {sorted(unknown)}")
    candidates = [*_patterns(text, language)]
    if "NAME" in types:
        candidates += [Entity("NAME", a, b, _plain(text[a:b])) for a, b in names(text, language)]
    if recognise is not None:
        candidates += [Entity(k, a, b, _plain(text[a:b])) for a, b, k in recognise(text)]
    ranked = sorted(
        (f for f in candidates if f.entity_type in types),
        key=lambda f: (ENTITY_TYPES.index(f.entity_type), f.start - f.end, f.start),
    )
    findings: list[Entity] = []  # sorted by position, unique as findings don't overlap
    for one in ranked:
        at = bisect_left(findings, one.start, key=lambda f: f.start)
        if (at == 0 or findings[at - 1].end <= one.start) and (
            at == len(findings) or findings[at].start >= one.end
        ):
            findings.insert(at, one)
    return findings


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


def _patterns(text: str, language: str) -> Iterator[Entity]:
    if "@" in text:
        for m in _EMAIL.finditer(text):
            yield Entity("EMAIL", *m.span(), m[0].lower())
    for start, end, address in spoken_forms.emails(text, language):
        yield Entity("EMAIL", start, end, address)
    if any(c.isdecimal() for c in text):
        yield from _numbers(text, language)
    for start, end, digits in spoken_forms.numbers(text, language):
        if _is_card(digits):
            yield Entity("CARD", start, end, digits)
        elif "12345678" not in digits:  # counting
            cue = _CUE.search(text, max(0, start - BEFORE), start)
            if number := _e164(digits, language, possible=bool(cue)):
                yield Entity("PHONE", start, end, number)


def _numbers(text: str, language: str) -> Iterator[Entity]:
    from stdnum import iban

    for m in _IBAN.finditer(text):
        # The pattern may continue into a following word in capitals: take the longest valid prefix.
        for end in range(m.end(), m.start() + 14, -1):
            iban_text = text[m.start() : end]
            if (
                iban_text[-1] != " "
                and (end == m.end() or text[end] == " ")
                and iban.is_valid(iban_text, check_country=False)
            ):
                yield Entity("IBAN", m.start(), end, iban_text.replace(" ", ""))
                break
    for m in _CARD.finditer(text):
        digits = re.sub(r"\D", "", m[0])
        if _is_card(digits) and not _OTHER.search(text, max(0, m.start() - BEFORE), m.start()):
            yield Entity("CARD", *m.span(), digits)
    for pattern in (_IP4, _IP6):
        for m in pattern.finditer(text):
            if _is_public(m[0]) and not _VERSION.search(text[max(0, m.start() - 12) : m.start()]):
                yield Entity("IP", *m.span(), m[0].lower())
    for m in _PHONE.finditer(text):
        if phone := _written_phone(m[0], text[max(0, m.start() - BEFORE) : m.start()], language):
            yield Entity("PHONE", *m.span(), phone)


def _is_card(digits: str) -> bool:
    from stdnum import luhn

    return bool(_ISSUER.fullmatch(digits)) and len(set(digits)) > 1 and luhn.is_valid(digits)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _e164(text: str, language: str, possible: bool = False) -> str:
    """Return a valid number (or one whose length is possible) in the form +CODE..., or ""."""
    import phonenumbers

    check = phonenumbers.is_possible_number if possible else phonenumbers.is_valid_number
    for region in (None,) if "+" in text[:2] else REGIONS.get(language, ()):
        try:
            number = phonenumbers.parse(text, region)
        except phonenumbers.NumberParseException:
            continue
        if check(number):
            return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    return ""


def _written_phone(written: str, before: str, language: str) -> str:
    """Return the phone number, or "" if the text is more likely something else."""
    cue, other = list(_CUE.finditer(before)), list(_OTHER.finditer(before))
    if (other and (not cue or cue[-1].start() < other[-1].start())) or _NO_PHONE.match(written):
        return ""
    if written.count("(") != written.count(")"):
        return ""
    number = _e164(written, language, possible=bool(cue))
    if not number or cue or "+" in written[:2]:
        return number
    groups = re.findall(r"\d+", written)
    # 612 345 678 may be a count: groups of three after a first one of at most three.
    thousands = len(groups[0]) <= 3 and all(len(g) == 3 for g in groups[1:]) and "-" not in written
    grouped = (
        len(groups) > 1 and min(map(len, groups)) > 1 and not (thousands and written[0] != "0")
    )
    # Mobile numbers in China are written without spaces.
    return number if grouped or (language == "zh" and re.fullmatch(r"1[3-9]\d{9}", written)) else ""


# ----------------------------------------------------------------------------------------------------------- replacing


@dataclass(frozen=True)
class Fakes:
    """Consistent replacements: the same value has the same fake, with the same seed, in every document and process.

    They can't reach a real person: addresses at example.com, .net and .org, telephone numbers 555-01xx, IP addresses
    from the ranges reserved for documentation, generated cards and IBANs with valid check digits, names of Faker's.
    Some entity types have few fakes (2,000 telephone numbers), so two values may share one.
    """

    seed: int = 0

    def __call__(self, finding: Entity, language: str) -> str:
        """Return the replacement of a finding; that of a name is a name of `language`."""
        key = f"{self.seed}\x1f{finding.entity_type}\x1f{finding.value}"
        faker = _faker(language if finding.entity_type == "NAME" else "en")
        faker.seed_instance(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()))
        if finding.entity_type == "EMAIL":
            return str(faker.safe_email())
        if finding.entity_type == "PHONE":
            return f"+1 {faker.random.choice(_AREAS)}-555-01{faker.random.randrange(100):02d}"
        if finding.entity_type == "CARD":
            return str(faker.credit_card_number("visa16"))
        if finding.entity_type == "IBAN":
            return str(faker.iban())
        if finding.entity_type == "IP":
            number = faker.random.randrange(1, 255)
            return f"2001:db8::{number:x}" if ":" in finding.value else f"192.0.2.{number}"
        if language in UNSPACED:
            return f"{faker.last_name()}{faker.first_name()}"
        return f"{faker.first_name()} {faker.last_name()}"


_AREAS = (
    201,
    202,
    203,
    205,
    206,
    212,
    213,
    214,
    215,
    216,
    301,
    302,
    303,
    304,
    305,
    312,
    313,
    314,
    315,
    316,
)
_FAKER = {"en": "en_US", "fr": "fr_FR", "de": "de_DE", "it": "it_IT", "pt": "pt_BR", "es": "es_ES"}
_FAKER |= {"zh": "zh_CN", "ja": "ja_JP"}


@cache
def _faker(language: str) -> Any:
    from faker import Faker

    return Faker(_FAKER.get(language, "en_US"))


def remove(
    text: str,
    language: str,
    types: Sequence[str] = ENTITY_TYPES,
    fake: Fakes | None = None,
    recognise: Recognise | None = None,
) -> tuple[str, Counter[str]]:
    """Return the text with `[TYPE]`, or a fake, instead of each finding; and the number of findings per type."""
    pieces, at, counts = [], 0, Counter[str]()
    for f in find(text, language, types, recognise):
        pieces += [text[at : f.start], fake(f, language) if fake else f"[{f.entity_type}]"]
        at = f.end
        counts[f.entity_type] += 1
    return "".join((*pieces, text[at:])), counts


def spacy_names(path: Path) -> Recognise:
    """Return a recognizer of names by a spaCy model in a user's folder (`pip install spacy`; nothing is downloaded).
    The model is loaded at the first text. Raises ValueError if there is no model."""
    if not (Path(path) / "config.cfg").exists():
        raise ValueError(f"{path}: expected the folder of a spaCy model, which has a config.cfg")

    @cache
    def model() -> Any:
        try:
            import spacy
        except ImportError:
            raise ValueError(
                "recognizing names by a model needs spaCy: pip install spacy"
            ) from None
        return spacy.load(path)

    def recognize(text: str) -> Iterator[tuple[int, int, str]]:
        for entity in model()(text).ents:
            if entity.label_ in ("PER", "PERSON"):
                yield entity.start_char, entity.end_char, "NAME"

    return recognize


class PiiFilter(BaseFilter):
    """Removes personal information from every text of a document, or drops documents that have any (`action="drop"`,
    reason `pii_TYPE`, the first entity type in order of precedence). Notes the number of each entity type. The language
    is that of the step `LanguageFilter`, or `meta["language"]`.

    A document with a recording is never changed: a model would be trained to write [NAME] where the voice says the
    name, and the voice would still say it. It is dropped if it has more than names, also in `meta["transcript"]`;
    names stay, as half of them aren't found and a recognizer has to spell them."""

    name, type = "Personal", "FILTER"

    def __init__(
        self,
        action: Literal["replace", "drop"] = "replace",
        types: Sequence[str] = ENTITY_TYPES,
        fake: Fakes | None = None,
        recognise: Recognise | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        if action not in ("replace", "drop"):
            raise ValueError(f"expected the action 'replace' or 'drop', found {action!r}")
        find("", "en", types)  # raises for unknown entity types
        self._drop, self._types = action == "drop", tuple(types)
        self._fake, self._recognize = fake, recognise

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        language, counts = language_of(doc), Counter[str]()
        meta = doc.metadata["sample"]["meta"]
        spoken = any(medium.metadata["kind"] == "audio" for medium in doc.media)

        def clean(text: str, language: str = language) -> str:
            cleaned, removed = remove(text, language, self._types, self._fake, self._recognize)
            counts.update(removed)
            return text if self._drop or spoken else cleaned

        edit(doc, clean)
        if spoken and "transcript" in meta:
            clean(str(meta["transcript"]), str(meta.get("spoken", language)))
        note(doc, "pii", **{name: counts[name] for name in ENTITY_TYPES if counts[name]})
        reasons = [name for name in ENTITY_TYPES if counts[name]]
        if spoken and not self._drop:
            reasons = [name for name in reasons if name != "NAME"]
        if reasons and (self._drop or spoken):
            return False, f"pii_{reasons[0]}"
        return True
