"""LiveBench's coding problems of November 2024 (report, Table 8): 78 to solve and 50 begun solutions to go on with; the
report's number is the mean over all 128."""

import json
from collections.abc import Iterator, Sequence

from polyphi.data.shards import Sample
from polyphi.eval import programs
from polyphi.eval.benchmark import Benchmark, Row, Score
from polyphi.eval.benchmarks.text import livecodebench
from polyphi.eval.sources import Data, Source
from polyphi.messages import Message

SOURCE = Source(
    "livebench/coding",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question_id", "task", "turns", "public_test_cases", "private_test_cases"),
    licence="CC-BY-SA-4.0",
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
        yield SOURCE.sample(
            f"livebench-{row['question_id']}",
            Message.user(row["turns"][0]),
            programs.fenced(solution) if solution else "",
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
    programs_found = [*programs.blocks(answer)[:1], programs.longest_program(answer)]
    return [code for text in programs_found for code in (_whole(text, sample), text)]


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, livecodebench.trial, _strict, _lenient)


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
    score_many=score_many,
    max_tokens=2000,
    unavailable=programs.unavailable,
    note=f"problems of the release of {RELEASE}; the report's numbers are of {EXPECTED}",
)
