"""LiveBench's coding problems of November 2024 (report, Table 8): 78 to solve and 50 begun solutions to go on with; the
report's number is the mean over all 128."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import programs
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.problems import PROBLEMS
from polyphi.eval.sources import Data, Source, write_parquet
from polyphi.eval.task import Score
from polyphi.eval.tasks.text import livecodebench
from polyphi.messages import Message

SOURCE = Source(
    "livebench/coding",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question_id", "task", "turns", "public_test_cases", "private_test_cases"),
)
RELEASE = "2024-11-25"
EXPECTED = 128
GENERATION, COMPLETION = "LCB_generation", "coding_completion"


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        added, removed = (
            str(row.get(f"livebench_{what}_date") or "")[:10] for what in ("release", "removal")
        )
        if row["task"] not in (GENERATION, COMPLETION) or added > RELEASE:
            continue
        if removed and removed <= RELEASE:
            continue
        begun = row.get("partial_solution") or ""
        solution = row.get("solution") or ""
        yield Sample(
            f"livebench-{row['question_id']}",
            (
                Message.user(row["turns"][0]),
                Message.assistant(programs.fenced(solution) if solution else ""),
            ),
            SOURCE.name,
            "CC-BY-SA-4.0",
            {
                "task": row["task"],
                "begun": begun,
                "entry": json.loads(row["original_json"]["metadata"] or "{}").get("func_name"),
                "public": row["public_test_cases"],
                "private": row["private_test_cases"],
            },
        )


def _whole(code: str, sample: Sample) -> str:
    """With its beginning, where only the rest was written."""
    begun = sample.meta["begun"]
    return code if not begun or code.startswith(begun) else f"{begun}\n{code}"


def _strict(answer: str, sample: Sample) -> str:
    return _whole(programs.last_block(answer), sample)


def _lenient(answer: str, sample: Sample) -> list[str]:
    found = [*programs.blocks(answer)[:1], programs.longest_program(answer)]
    return [code for text in found for code in (_whole(text, sample), text)]


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, livecodebench.trial, _strict, _lenient)


def mini(root: Path) -> None:
    rows = []
    for number, (task, problem) in enumerate(zip((GENERATION, COMPLETION), PROBLEMS, strict=False)):
        begun = "\n".join(problem.method.split("\n")[:2]) if task == COMPLETION else ""
        ask = f"Go on with this solution; write what is missing.\n{begun}" if begun else ""
        rows.append(
            {
                "question_id": str(number),
                "category": "coding",
                "task": task,
                "turns": [
                    f"{problem.text}\n{ask or 'Write the class Solution with it as a method.'}"
                ],
                "public_test_cases": json.dumps(problem.cases[:1]),
                "private_test_cases": json.dumps(problem.cases[1:]),
                "original_json": {"metadata": json.dumps({"func_name": problem.name})},
                "livebench_release_date": "2024-06-24",
                "livebench_removal_date": "",
                "partial_solution": begun,
                "solution": problem.method,
            }
        )
    write_parquet(root / SOURCE.name / "data/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="livebench_code",
    title="LiveBench, code",
    modality="text",
    rows=(
        Row("Table 8", "LiveBench (code task)"),
        Row("", "LiveBench, problems to solve", {"task": GENERATION}),
        Row("", "LiveBench, solutions to complete", {"task": COMPLETION}),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=score_many,
    max_tokens=2000,
    unable=programs.unable,
    note=f"problems of the release of {RELEASE}; the report's numbers are of {EXPECTED}",
)
