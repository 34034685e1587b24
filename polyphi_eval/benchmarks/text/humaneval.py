"""HumanEval (report, Tables 7 and 8): 164 functions to write, each judged by its tests; the first answer counts.

The prompts are EvalPlus', so that HumanEval+ reuses the answers.
"""

from collections.abc import Iterator, Sequence

from polyphi.data.sample import Sample
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "openai/openai_humaneval",
    ("openai_humaneval/test-*.parquet",),
    "the Hub",
    fields=("task_id", "prompt", "canonical_solution", "test", "entry_point"),
    rows=164,
    licence="MIT",
)


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        program = row["prompt"] + row["canonical_solution"]
        yield SOURCE.sample(
            row["task_id"],
            programs.prompt_messages(row["prompt"]),
            programs.fenced(program),
            {
                "entry": row["entry_point"],
                "prompt": row["prompt"],
                "before": program,
                "tests": row["test"],
            },
        )


def trial(code: str, sample: Sample) -> programs.Trial:
    tests = {"kind": "asserts", **{k: sample.meta[k] for k in ("before", "tests", "entry")}}
    return programs.Trial(code, tests)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, programs.strict_program, programs.lenient_programs)


benchmark = Benchmark(
    name="humaneval",
    title="HumanEval",
    modality="text",
    rows=(TableRow("Table 7", "HumanEval"), TableRow("Table 8", "HumanEval")),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=programs.MAX_TOKENS,
    unavailable=programs.unavailable,
)
