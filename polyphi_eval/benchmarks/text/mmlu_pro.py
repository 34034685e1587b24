"""MMLU-Pro (report, Table 7): 12,032 questions with up to ten options, 0 examples, with a chain of thought."""

from collections import defaultdict
from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "TIGER-Lab/MMLU-Pro",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question_id", "question", "options", "answer", "category"),
    rows=12032,
    licence="MIT",
)
CHAIN = r"(?s)\A(?:.*?answer is \(?([A-J])\)?|(?:.*?\n)??[^\n]*[aA]nswer:\s*([A-J])|.*\b([A-J])\b)"
"""The benchmark's order: the first "answer is (X)", otherwise "Answer: X", otherwise the last letter. An answer without
any of them is wrong (the benchmark's script guesses)."""


def task(name: str) -> LmTask:
    changes = {
        "num_fewshot": 0,
        "fewshot_split": None,
        "fewshot_config": None,
        "process_docs": None,  # it selects a category's rows, as `load` does
        "filter_list": [
            {
                "name": name,
                "filter": [
                    {"function": "regex", "regex_pattern": pattern},
                    {"function": "take_first"},
                ],
            }
            for name, pattern in (("chain", CHAIN), ("first", r"answer is \(?([A-J])\)?"))
        ],
    }
    return LmTask(name, "mmlu_pro", changes, strict="chain")


def load(data: Data) -> Iterator[Sample]:
    groups = defaultdict(list)
    for row in data.rows(SOURCE):
        groups[row["category"].replace(" ", "_")].append(row)
    for category, rows in sorted(groups.items()):
        yield from samples(
            task(f"mmlu_pro_{category}"),
            {"test": rows},
            f"mmlu_pro-{category}",
            SOURCE,
            {"category": category},
            lambda row: f"The answer is ({row['answer']}).",
        )


benchmark = Benchmark(
    name="mmlu_pro",
    title="MMLU-Pro",
    modality="text",
    rows=(
        TableRow("Table 7", "MMLU-Pro"),
        TableRow("", 'MMLU-Pro, only "answer is (X)"', part="first"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=scoring(task),
    max_tokens=2048,
)
