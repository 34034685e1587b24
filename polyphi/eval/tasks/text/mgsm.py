"""MGSM (report, Table 7): 250 word problems in each of eleven languages, 0 examples, thought in the same language."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import LmTask, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
SOURCE = Source(
    "juletxara/mgsm",
    [f"{language}/test-*.parquet" for language in LANGUAGES],
    "the Hub",
    fields=("question", "answer", "answer_number"),
    rows=2750,
)


def task(name: str) -> LmTask:
    return LmTask(name, "mgsm/native_cot", {"training_split": None}, strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    for language, pattern in zip(LANGUAGES, SOURCE.files, strict=True):
        yield from samples(
            task(f"mgsm_native_cot_{language}"),
            {"test": data.rows(SOURCE, pattern)},
            f"mgsm-{language}",
            SOURCE.name,
            "CC-BY-SA-4.0",
            {"language": language},
        )


def mini(root: Path) -> None:
    asks = {
        "bn": "{} আর {} যোগ করলে কত হয়?",
        "de": "Wie viel sind {} Äpfel und {} Äpfel?",
        "en": "How many are {} apples and {} apples?",
        "es": "¿Cuántas son {} manzanas y {} manzanas?",
        "fr": "Combien font {} pommes et {} pommes ?",
        "ja": "りんご{}個とりんご{}個で何個ですか。",
        "ru": "Сколько будет {} яблок и {} яблок?",
        "sw": "Matofaa {} na matofaa {} ni mangapi?",
        "te": "{} మరియు {} కలిపితే ఎంత?",
        "th": "แอปเปิล {} ลูกกับ {} ลูก รวมเป็นกี่ลูก",
        "zh": "{}个苹果和{}个苹果一共多少个？",
    }
    for number, (language, words) in enumerate(asks.items()):
        rows = [
            {
                "question": words.format(number + 2, 9),
                "answer": None,
                "answer_number": number + 11,
                "equation_solution": None,
            }
        ]
        write_parquet(root / SOURCE.name / language / "test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="mgsm",
    title="MGSM",
    modality="text",
    rows=(
        Row("Table 7", "MGSM"),
        *(Row("", f"MGSM, {x}", {"language": x}) for x in LANGUAGES),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(task),
    max_tokens=1024,
)
