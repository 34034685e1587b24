"""GPQA: the 448 questions of the main set (report, Table 7), 0 examples, with a chain of thought; and the 198 of
Diamond (Table 9), a single run with a long chain of thought."""

from collections.abc import Iterator
from typing import Any

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

CORRECT, INCORRECT = "Correct Answer", [f"Incorrect Answer {n}" for n in (1, 2, 3)]
FIELDS = ("Question", CORRECT, *INCORRECT)
WHERE, LICENCE = "the Hub, once its terms are accepted", "CC-BY-4.0"
CHAIN = r"(?s)\A(?:.*[aA]nswer is:?\W{0,4}([A-D])(?![\w'])|.*\(([A-D])\)|.*[aA]nswer:\W{0,4}([A-D])(?![\w']))"
"""The last "answer is X", otherwise the last "(X)", otherwise the last "Answer: X"."""


def task(name: str) -> LmTask:
    filters = [{"function": "regex", "regex_pattern": CHAIN}, {"function": "take_first"}]
    changes = {"training_split": None, "filter_list": [{"name": "chain", "filter": filters}]}
    return LmTask(name, "gpqa/cot_zeroshot", changes, strict="chain")


def gpqa(
    name: str, title: str, row: TableRow, source: BenchmarkSource, task_name: str, **settings: Any
) -> Benchmark:
    """Return a benchmark whose options are shuffled with a fixed seed."""

    def load(data: Data) -> Iterator[Sample]:
        rows = ({key: row[key] for key in FIELDS} for row in data.rows(source))
        return samples(task(task_name), {"train": rows}, task_name, source)

    return Benchmark(
        name=name,
        title=title,
        modality="text",
        rows=(row,),
        sources=(source,),
        load=load,
        score_many=scoring(task),
        **settings,
    )


benchmarks = (
    gpqa(
        "gpqa",
        "GPQA",
        TableRow("Table 7", "GPQA"),
        BenchmarkSource(
            "Idavidrein/gpqa", ("gpqa_main.csv",), WHERE, fields=FIELDS, rows=448, licence=LICENCE
        ),
        "gpqa_main_cot_zeroshot",
        max_tokens=2048,
    ),
    gpqa(
        "gpqa_diamond",
        "GPQA Diamond",
        TableRow("Table 9", "GPQA Diamond", column="Phi-4-Mini (reasoning trained) 3.8B"),
        BenchmarkSource(
            "Idavidrein/gpqa",
            ("gpqa_diamond.csv",),
            WHERE,
            fields=FIELDS,
            rows=198,
            licence=LICENCE,
        ),
        "gpqa_diamond_cot_zeroshot",
        max_tokens=32768,
        sampling={"temperature": 0.6, "top_p": 0.95},
    ),
)
