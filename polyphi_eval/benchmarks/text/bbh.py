"""BIG-Bench Hard (report, Table 7): 6,511 problems of 27 tasks, 0 examples, with a chain of thought."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data, read_rows

SOURCE = BenchmarkSource(
    "SaylorTwift/bbh",
    ("*/test-*.parquet",),
    "the Hub",
    fields=("input", "target"),
    rows=6511,
    licence="MIT",
)


def task(name: str) -> LmTask:
    return LmTask(name, "bbh/cot_zeroshot", strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE):
        subtask = path.parent.name
        yield from samples(
            task(f"bbh_cot_zeroshot_{subtask}"),
            {"test": read_rows(path)},
            f"bbh-{subtask}",
            SOURCE,
            {"kind": subtask},
            lambda row: f"The answer is {row['target']}.",
        )


benchmark = Benchmark(
    name="bbh",
    title="BIG-Bench Hard",
    modality="text",
    rows=(
        TableRow("Table 7", "BigBench-Hard"),
        TableRow("", 'BIG-Bench Hard, only after "the answer is"', part="strict-match"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=scoring(task),
    max_tokens=1024,
)
