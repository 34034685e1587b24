"""Fairness of speech recognition on Common Voice 15: what its volunteers said of their gender, age and accent.

Its ages are decades: twenties count as 17-30, thirties as 31-45, fifties as 46-65, and the others, which lie across the
report's bounds, as none. Test and development sets are read, of clips with a gender or an age alone. English, Spanish
and Portuguese need an accent that names the locale's country; the other languages one that names no other country.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.fairness import ROWS, sample, stand_ins
from polyphi.eval.scorers import wer
from polyphi.eval.sources import Data, Source, clip, read_rows, write_tsv

SOURCE = Source(
    "cv-corpus-15.0-2023-09-08",
    ("*/test.tsv", "*/dev.tsv"),
    "commonvoice.mozilla.org, Common Voice Corpus 15.0, one archive for each language",
    fields=("client_id", "path", "sentence", "age", "gender", "accents", "variant"),
    hub=False,
)
AGES = {"twenties": "17-30", "thirties": "31-45", "fifties": "46-65"}
GENDERS = {
    "male": "male",
    "female": "female",
    "male_masculine": "male",
    "female_feminine": "female",
}
NAMED = {
    "en": {"en-US": "united states|american", "en-GB": "england|britain|british|scot|welsh|wales"},
    "es": {"es-MX": "m[ée]xic", "es-ES": "españa|peninsular|spain|canari"},
    "pt": {"pt-BR": "bra[sz]il"},
}
"""Language folders to locales and what an accent or variant has that is of theirs."""
OTHERS = {
    "de": ("de-DE", "österreich|schweiz|liechtenstein|luxemb|austria|switz|italien"),
    "fr": ("fr-FR", "canad|québec|belg|suisse|afri|algér|maroc|tunis|sénégal|côte|camer"),
    "it": ("it-IT", "svizzer|switz"),
    "ja": ("ja-JP", "^$"),
    "zh-CN": ("zh-CN", "台湾|台灣|香港|singap|新加坡"),
}
"""Likewise, and what an accent has that is of another country."""


def locale_of(language: str, accent: str) -> str | None:
    """Of a row's language folder and what its speaker said of their accent."""
    accent = accent.lower().strip()
    if language in NAMED:
        found = [name for name, told in NAMED[language].items() if re.search(told, accent)]
        return found[0] if len(found) == 1 else None
    locale, foreign = OTHERS.get(language, (None, ""))
    return None if accent and re.search(foreign, accent) else locale


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE):
        language = path.parent.name
        for number, row in enumerate(read_rows(path)):
            gender, age = GENDERS.get(row.get("gender") or ""), AGES.get(row.get("age") or "")
            told = f"{row.get('accents') or ''} {row.get('variant') or ''}"
            locale = locale_of(language, told)
            if locale is None or not (gender or age):
                continue
            yield sample(
                f"cv15-{language}-{path.stem}-{number}",
                clip(row["path"], path.parent / "clips"),
                row["sentence"],
                SOURCE.name,
                "CC0-1.0",
                locale=locale,
                gender=gender,
                age=age,
                speaker=row["client_id"],
            )


ACCENTS = {
    "en-US": "United States English",
    "en-GB": "England English",
    "es-MX": "México",
    "es-ES": "España: Centro-Sur peninsular",
    "pt-BR": "Português do Brasil",
}
HEAD = (
    *("client_id", "path", "sentence", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)


def mini(root: Path) -> None:
    """Rows of the development sets; the test sets' are made by the benchmark that reads nothing else, and stay as they
    are."""
    home, decades = root / SOURCE.name, {group: decade for decade, group in AGES.items()}
    held: dict[str, list[dict[str, str]]] = {}
    for locale, gender, age, text, name in stand_ins(home / "stand-ins"):
        language = locale if locale == "zh-CN" else locale[:2]
        (home / language / "clips").mkdir(parents=True, exist_ok=True)
        (home / "stand-ins" / name).replace(home / language / "clips" / name)
        values = [name, name, text, "2", "0", decades[age], gender]
        values += [ACCENTS.get(locale, ""), "", language, ""]
        held.setdefault(language, []).append(dict(zip(HEAD, values, strict=True)))
    (home / "stand-ins").rmdir()
    for language, rows in held.items():
        write_tsv(home / language / "dev.tsv", rows)
        if not (home / language / "test.tsv").exists():
            write_tsv(home / language / "test.tsv", [{**rows[0], "age": "", "gender": ""}])


benchmark = Benchmark(
    name="fairness_cv15",
    title="Speech fairness, Common Voice",
    modality="safety",
    rows=ROWS,
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=wer,
    max_tokens=256,
    status="substitute data",
    note="Common Voice in place of the report's private clips",
)
