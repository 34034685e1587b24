"""LiveBench's coding problems of November 2024 (report, Table 8): 78 problems to solve and 50 partial
solutions to complete; the report's number is the mean over all 128."""

import json
from collections.abc import Iterator, Sequence

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.benchmarks.text import livecodebench
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "livebench/coding",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question_id", "task", "turns", "public_test_cases", "private_test_cases"),
    licence="CC-BY-SA-4.0",
)
RELEASE = "2024-11-25"
PROBLEMS = 128
GENERATION, COMPLETION = "LCB_generation", "coding_completion"


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        release, removal = (
            str(row.get(f"livebench_{event}_date") or "")[:10] for event in ("release", "removal")
        )
        if row["task"] not in (GENERATION, COMPLETION) or release > RELEASE:
            continue
        if removal and removal <= RELEASE:
            continue
        partial = row.get("partial_solution") or ""
        solution = row.get("solution") or ""
        yield SOURCE.sample(
            f"livebench-{row['question_id']}",
            Message.user(row["turns"][0]),
            programs.fenced(solution) if solution else "",
            {
                "task": row["task"],
                "begun": partial,
                "entry": json.loads(row["original_json"]["metadata"] or "{}").get("func_name"),
                "public": row["public_test_cases"],
                "private": row["private_test_cases"],
            },
        )


def _complete(code: str, sample: Sample) -> str:
    """Return the code, after the partial solution if the answer has only the rest."""
    partial = sample.meta["begun"]
    return code if code.startswith(partial) else f"{partial}\n{code}"


def _strict(answer: str, sample: Sample) -> str:
    return _complete(programs.last_block(answer), sample)


def _lenient(answer: str, sample: Sample) -> list[str]:
    readings = [*programs.blocks(answer)[:1], programs.longest_program(answer)]
    return [code for text in readings for code in (_complete(text, sample), text)]


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, livecodebench.trial, _strict, _lenient)


benchmark = Benchmark(
    name="livebench_code",
    title="LiveBench, code",
    modality="text",
    rows=(
        TableRow("Table 8", "LiveBench (code task)"),
        TableRow("", "LiveBench, problems to solve", {"task": GENERATION}),
        TableRow("", "LiveBench, solutions to complete", {"task": COMPLETION}),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=2000,
    unavailable=programs.unavailable,
    note=f"problems of release {RELEASE}; the report's numbers are of {PROBLEMS} problems",
)
