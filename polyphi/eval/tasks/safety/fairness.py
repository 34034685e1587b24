"""Fairness of speech recognition (report, section 5.2) on clips whose speakers' locale, gender and age are known.

The report's clips are private; whoever has such ones writes a line for each into DIR/speech-fairness/manifest.jsonl.
`fairness_cv15` measures the same on Common Voice.
"""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.fairness import AGES, LOCALES, ROWS, sample, stand_ins
from polyphi.eval.scorers import wer
from polyphi.eval.sources import Data, Source, clip, write_jsonl

SOURCE = Source(
    "speech-fairness",
    ("manifest.jsonl",),
    'you: lines of {"audio": a path, "text", "locale": "en-US", "gender": "female" or "male", "age": 34} with '
    '"speaker" where it is known',
    fields=("audio", "text", "locale", "gender", "age"),
    hub=False,
)


def load(data: Data) -> Iterator[Sample]:
    folder = data.folder(SOURCE)
    for number, row in enumerate(data.rows(SOURCE), 1):
        if row["locale"] not in LOCALES:
            raise ValueError(
                f"{SOURCE.name}/{SOURCE.files[0]}, line {number}: expected a locale of {', '.join(LOCALES)}, found "
                f"{row['locale']!r}"
            )
        yield sample(
            f"fairness-{number}",
            clip(row["audio"], folder),
            row["text"],
            SOURCE.name,
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


def mini(root: Path) -> None:
    folder = root / SOURCE.name
    write_jsonl(
        folder / SOURCE.files[0],
        [
            {"audio": f"clips/{name}", "text": text, "locale": locale, "gender": g, "age": age}
            for locale, g, age, text, name in stand_ins(folder / "clips")
        ],
    )


benchmark = Benchmark(
    name="fairness",
    title="Speech fairness",
    modality="safety",
    rows=ROWS,
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=wer,
    max_tokens=256,
    status="private",
    note="the report's clips are private: measured on those that were brought in their place",
)
