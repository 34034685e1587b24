"""GSM8K (report, Table 7): 1,319 word problems, 8 worked examples."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import LmTask, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

SOURCE = Source(
    "openai/gsm8k", ("main/test-*.parquet",), "the Hub", fields=("question", "answer"), rows=1319
)


def task(name: str) -> LmTask:
    return LmTask(name, "gsm8k", strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    return samples(
        task("gsm8k_cot"),
        {"test": data.rows(SOURCE)},
        "gsm8k",
        SOURCE.name,
        "MIT",
        reference=lambda row: f"The answer is {row['answer'].rpartition('####')[2].strip()}.",
    )


def mini(root: Path) -> None:
    rows = [
        {
            "question": f"Ada has {n} boxes with {n + 2} pens each. How many pens does she have?",
            "answer": f"{n} times {n + 2} is {n * (n + 2):,}.\n#### {n * (n + 2):,}",
        }
        for n in (3, 5, 8, 40)
    ]
    write_parquet(root / SOURCE.name / "main/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="gsm8k",
    title="GSM8K",
    modality="text",
    rows=(
        Row("Table 7", "GSM-8K"),
        Row("", 'GSM8K, only after "The answer is"', part="strict-match"),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(task),
    max_tokens=1024,
)
