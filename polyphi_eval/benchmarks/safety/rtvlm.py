"""RTVLM (report, Table 15): questions about images that mislead, pry, attack or discriminate; the mean of its four
aspects, faithfulness, privacy, safety and fairness."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.parts import Image
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.image_safety import JUDGING, image_prompt
from polyphi_eval.sources import BenchmarkSource, Data, Missing, read_rows

SOURCE = BenchmarkSource(
    "MMInstruction/RedTeamingVLM",
    ("data/*/*.jsonl", "data/*/img/**/*.jpg"),
    "the Hub; unzip each data/*/img/img.zip in its folder",
    fields=("instruction",),
    licence="CC-BY-4.0",
)
ASPECTS = {
    "harmful": "faithfulness",  # its questions mislead
    "visualmisleading": "faithfulness",
    "visualorder": "faithfulness",
    "celebrity": "privacy",
    "safety": "safety",
    "politics": "safety",
    "racial": "safety",
    "religion": "safety",
    "captcha": "safety",
    "jailbreak": "safety",
    "face": "fairness",
}
"""Prefixes of the folders below data/ -> the aspects of the benchmark's paper (2401.12915)."""
REFERENCES = ("reference_answer", "answer", "response", "output")


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE, SOURCE.files[0]):
        folder = path.parent.name
        aspect = next((a for n, a in ASPECTS.items() if folder.lower().startswith(n)), None)
        if aspect is None:
            continue
        for number, row in enumerate(read_rows(path)):
            refuse = str(row.get("refused_to_answer", "")).lower() in ("true", "yes", "1")
            reference = next((str(row[name]) for name in REFERENCES if row.get(name)), "")
            yield SOURCE.sample(
                f"rtvlm-{folder}-{path.stem}-{number}",
                image_prompt(row["instruction"], _image(path.parent, row, number)),
                reference or ("I can't answer that." if refuse else ""),
                {
                    "aspect": aspect,
                    "set": folder,
                    "question": row["instruction"],
                    "about": f"{aspect} ({folder})" + ("; it should be declined" if refuse else ""),
                },
            )


def _image(folder: Path, row: dict[str, Any], number: int) -> Image:
    """img/INDEX.jpg, also from folders below img/."""
    name = f"{row.get('index', row.get('id', number))}.jpg"
    path = next(iter(sorted((folder / "img").rglob(name))), None)
    if path is None:
        raise Missing(f"{folder / 'img' / name} is missing; {SOURCE.name}: {SOURCE.where}")
    return Image(path)


benchmark = Benchmark(
    name="rtvlm",
    title="RTVLM",
    modality="safety",
    rows=(
        TableRow("Table 15", "RTVLM (public)", {}, "mean", "safety", by="aspect"),
        *(
            TableRow("", f"RTVLM, {aspect}", {"aspect": aspect}, "mean", "safety")
            for aspect in dict.fromkeys(ASPECTS.values())
        ),
    ),
    sources=(SOURCE,),
    load=load,
    judging=JUDGING,
    max_tokens=256,
    note="the report's judge saw the image; ours has only the reference",
)
