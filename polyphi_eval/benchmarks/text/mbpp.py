"""MBPP (report, Tables 7 and 8): functions to write from a sentence and three asserts, after three solved problems.

The report doesn't say which set it uses: its numbers fit the 427 sanitized problems, examples included, and can't be of
the 500 test problems. The 427 are the default; 257 of them, all 974 and the 500 have rows too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "google-research-datasets/mbpp",
    ("sanitized/*.parquet", "full/*.parquet"),
    "the Hub",
    fields=("task_id", "code", "test_list"),
    rows=427 + 974,
    licence="CC-BY-4.0",
)
SHOTS = (2, 3, 4)
SPLITS = ("prompt", "train", "validation", "test")
BEGIN, DONE = "[BEGIN]", "[DONE]"


def load(data: Data) -> Iterator[Sample]:
    for name in ("sanitized", "full"):
        rows = [
            {**row, "split": split}
            for split in SPLITS
            for row in data.rows(SOURCE, f"{name}/{split}-*.parquet")
        ]
        by_id = {row["task_id"]: row for row in rows}
        shots = "".join(
            f"{_problem(by_id[k])}\n{by_id[k]['code'].strip()}\n{DONE}\n\n" for k in SHOTS
        )
        for row in rows:
            imports = row.get("test_imports") or []
            setup = row.get("test_setup_code") or ""
            yield SOURCE.sample(
                f"mbpp-{name}-{row['task_id']}",
                Message.user(shots + _problem(row) + "\n"),
                f"{row['code'].strip()}\n{DONE}",
                {
                    "set": name,
                    "split": row["split"],
                    "tests": "\n".join([*imports, setup, *row["test_list"]]),
                    "stop": [DONE],
                },
            )


def _problem(row: Mapping[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    text = row.get("prompt") or row["text"]
    return (
        f"You are an expert Python programmer, and here is your task: {text.strip()} "
        f"Your code should pass these tests:\n\n{tests}\n{BEGIN}"
    )


def trial(code: str, sample: Sample) -> programs.Trial:
    return programs.Trial(code, {"kind": "asserts", "tests": sample.meta["tests"]})


def _strict(answer: str, sample: Sample) -> str:
    return programs.longest_program(answer.partition(DONE)[0].rpartition(BEGIN)[2])


def _lenient(answer: str, sample: Sample) -> list[str]:
    return [*programs.blocks(answer)[-1:], programs.longest_program(answer)]


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, _strict, _lenient)


benchmark = Benchmark(
    name="mbpp",
    title="MBPP",
    modality="text",
    rows=(
        TableRow("Table 7", "MBPP", {"set": "sanitized"}),
        TableRow("Table 8", "MBPP", {"set": "sanitized"}),
        TableRow(
            "", "MBPP, test problems of the sanitized (257)", {"set": "sanitized", "split": "test"}
        ),
        TableRow("", "MBPP, all (974)", {"set": "full"}),
        TableRow("", "MBPP, test problems of all (500)", {"set": "full", "split": "test"}),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=512,
    unavailable=programs.unavailable,
)
