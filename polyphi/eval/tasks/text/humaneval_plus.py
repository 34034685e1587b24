"""HumanEval+ (report, Table 8): HumanEval's functions on many more inputs, where the reference solution's outputs are
the truth. Base and added inputs both count, as EvalPlus has it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import programs
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.problems import PROBLEMS
from polyphi.eval.sources import Data, Source, write_jsonl
from polyphi.eval.task import Score
from polyphi.eval.trial import pack
from polyphi.messages import Message
from polyphi.services import sandbox

SOURCE = Source(
    "evalplus",
    ("HumanEvalPlus*.jsonl*",),
    "https://github.com/evalplus/humanevalplus_release/releases (HumanEvalPlus.jsonl.gz, v0.1.10)",
    fields=("task_id", "prompt", "canonical_solution", "entry_point", "base_input", "plus_input"),
    rows=164,
    hub=False,
)
LIMITS = sandbox.Limits(seconds=60.0, cpu_seconds=10, memory_bytes=1 << 30)
RULES = {"find_zero": "root"}
"""Functions that have many right outputs."""


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        whole = row["prompt"] + row["canonical_solution"]
        yield Sample(
            row["task_id"],
            (*programs.asked(row["prompt"]), Message.assistant(programs.fenced(whole))),
            "HumanEvalPlus v0.1.10",
            "Apache-2.0",
            {
                "entry": row["entry_point"],
                "prompt": row["prompt"],
                "reference": whole,
                "tolerance": row["atol"],
                "inputs": json.dumps({"base": row["base_input"], "plus": row["plus_input"]}),
            },
        )


def trial(
    code: str,
    sample: Sample,
    rules: Mapping[str, str] = RULES,
    shape: Callable[[list[Any]], Any] = list,
) -> programs.Trial:
    """`shape` makes of a row's inputs what JSON can't hold."""
    meta = sample.meta
    tests = {
        "kind": "outputs",
        "reference": meta["reference"],
        "entry": meta["entry"],
        "rule": rules.get(meta["entry"]),
        "tolerance": meta["tolerance"],
        "inputs": {
            group: [pack(shape(given)) for given in inputs]
            for group, inputs in json.loads(meta["inputs"]).items()
        },
    }
    return programs.Trial(code, tests, limits=LIMITS)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, programs.needed, programs.generous, ("base",))


def mini(root: Path) -> None:
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": problem.prompt,
            "contract": "",
            "canonical_solution": problem.body,
            "entry_point": problem.name,
            "base_input": [list(args) for args, _ in problem.calls],
            "plus_input": [list(args) for args in problem.more],
            "atol": problem.tolerance,
        }
        for number, problem in enumerate(PROBLEMS)
    ]
    write_jsonl(root / SOURCE.name / "HumanEvalPlus-v0.1.10.jsonl", rows)


benchmark = Benchmark(
    name="humaneval_plus",
    title="HumanEval+",
    modality="text",
    rows=(
        Row("Table 8", "HumanEval+"),
        Row("", "HumanEval, base inputs by EvalPlus", part="base"),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=score_many,
    max_tokens=programs.MAX_TOKENS,
    unable=programs.unable,
)
