"""Fairness of speech recognition (report, section 5.2) on clips whose speakers' locale, gender and age are known.

The report's clips are private; whoever has such ones writes a line for each into DIR/speech-fairness/manifest.jsonl.

Common Voice 15 stands beside: what its volunteers said of their gender, age and accent. Its ages are decades: twenties
count as 17-30, thirties as 31-45, fifties as 46-65, and the others, which lie across the report's bounds, as none. Test
and development sets are read, of clips with a gender or an age alone. English, Spanish and Portuguese need an accent
that names the locale's country; the other languages one that names no other country.
"""

import re
from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.fairness import AGES, LOCALES, ROWS, sample
from polyphi.eval.scorers import wer
from polyphi.eval.sources import Data, Source, clip, read_rows

PRIVATE = Source(
    "speech-fairness",
    ("manifest.jsonl",),
    'you: lines of {"audio": a path, "text", "locale": "en-US", "gender": "female" or "male", "age": 34} with '
    '"speaker" where it is known',
    fields=("audio", "text", "locale", "gender", "age"),
    hub=False,
)


def private(data: Data) -> Iterator[Sample]:
    folder = data.folder(PRIVATE)
    for number, row in enumerate(data.rows(PRIVATE), 1):
        if row["locale"] not in LOCALES:
            raise ValueError(
                f"{PRIVATE.name}/{PRIVATE.files[0]}, line {number}: expected a locale of {', '.join(LOCALES)}, found "
                f"{row['locale']!r}"
            )
        yield sample(
            f"fairness-{number}",
            clip(row["audio"], folder),
            row["text"],
            PRIVATE.name,
            "as its owner says",
            locale=row["locale"],
            gender=row.get("gender"),
            age=age_group(row.get("age")),
            speaker=row.get("speaker"),
        )


def age_group(age: int | str | None) -> str | None:
    """17-30, 31-45 or 46-65 of years, or of a group's name; None for others."""
    if age in AGES:
        return str(age)
    try:
        years = int(str(age))
    except ValueError:
        return None
    return next((a for a in AGES if int(a[:2]) <= years <= int(a[3:])), None)


# ---------------------------------------------------------------------- Common Voice

COMMON_VOICE = Source(
    "cv-corpus-15.0-2023-09-08",
    ("*/test.tsv", "*/dev.tsv"),
    "commonvoice.mozilla.org, Common Voice Corpus 15.0, one archive for each language",
    fields=("client_id", "path", "sentence", "age", "gender", "accents", "variant"),
    hub=False,
)
DECADES = {"twenties": "17-30", "thirties": "31-45", "fifties": "46-65"}
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
        matches = [name for name, pattern in NAMED[language].items() if re.search(pattern, accent)]
        return matches[0] if len(matches) == 1 else None
    locale, foreign = OTHERS.get(language, (None, ""))
    return None if accent and re.search(foreign, accent) else locale


def common_voice(data: Data) -> Iterator[Sample]:
    for path in data.files(COMMON_VOICE):
        language = path.parent.name
        for number, row in enumerate(read_rows(path)):
            gender, age = GENDERS.get(row.get("gender") or ""), DECADES.get(row.get("age") or "")
            accent = f"{row.get('accents') or ''} {row.get('variant') or ''}"
            locale = locale_of(language, accent)
            if locale is None or not (gender or age):
                continue
            yield sample(
                f"cv15-{language}-{path.stem}-{number}",
                clip(row["path"], path.parent / "clips"),
                row["sentence"],
                COMMON_VOICE.name,
                "CC0-1.0",
                locale=locale,
                gender=gender,
                age=age,
                speaker=row["client_id"],
            )


benchmarks = (
    Benchmark(
        name="fairness",
        title="Speech fairness",
        modality="safety",
        rows=ROWS,
        sources=(PRIVATE,),
        load=private,
        scorer=wer,
        max_tokens=256,
        status="private",
        note="the report's clips are private: measured on those that were brought in their place",
    ),
    Benchmark(
        name="fairness_cv15",
        title="Speech fairness, Common Voice",
        modality="safety",
        rows=ROWS,
        sources=(COMMON_VOICE,),
        load=common_voice,
        scorer=wer,
        max_tokens=256,
        status="substitute data",
        note="Common Voice in place of the report's private clips",
    ),
)
