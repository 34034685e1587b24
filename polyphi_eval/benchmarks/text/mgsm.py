"""MGSM (report, Table 7): 250 word problems in each of eleven languages, 0 examples, reasoning in that language."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
SOURCE = BenchmarkSource(
    "juletxara/mgsm",
    [f"{language}/test-*.parquet" for language in LANGUAGES],
    "the Hub",
    fields=("question", "answer", "answer_number"),
    rows=2750,
    licence="CC-BY-SA-4.0",
)


def task(name: str) -> LmTask:
    return LmTask(name, "mgsm/native_cot", {"training_split": None}, strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    for language, pattern in zip(LANGUAGES, SOURCE.files, strict=True):
        yield from samples(
            task(f"mgsm_native_cot_{language}"),
            {"test": data.rows(SOURCE, pattern)},
            f"mgsm-{language}",
            SOURCE,
            {"language": language},
        )


benchmark = Benchmark(
    name="mgsm",
    title="MGSM",
    modality="text",
    rows=(
        TableRow("Table 7", "MGSM"),
        *(TableRow("", f"MGSM, {x}", {"language": x}) for x in LANGUAGES),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=scoring(task),
    max_tokens=1024,
)
