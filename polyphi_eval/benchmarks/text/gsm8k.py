"""GSM8K (report, Table 7): 1,319 word problems, 8 worked examples."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "openai/gsm8k",
    ("main/test-*.parquet",),
    "the Hub",
    fields=("question", "answer"),
    rows=1319,
    licence="MIT",
)


def task(name: str) -> LmTask:
    return LmTask(name, "gsm8k", strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    return samples(
        task("gsm8k_cot"),
        {"test": data.rows(SOURCE)},
        "gsm8k",
        SOURCE,
        reference=lambda row: f"The answer is {row['answer'].rpartition('####')[2].strip()}.",
    )


benchmark = Benchmark(
    name="gsm8k",
    title="GSM8K",
    modality="text",
    rows=(
        TableRow("Table 7", "GSM-8K"),
        TableRow("", 'GSM8K, only after "The answer is"', part="strict-match"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=scoring(task),
    max_tokens=1024,
)
