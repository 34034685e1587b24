"""MBPP+ (report, Table 8): 378 functions on many more inputs than MBPP's own tests have, after three solved ones.

EvalPlus asks without examples; the report has three, so that MBPP's first three (task ids 2, 3, 4) are put in front in
EvalPlus' own form. They count as well, as they do in the 378.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import programs
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.problems import PROBLEMS
from polyphi.eval.sources import Data, Source, write_jsonl
from polyphi.eval.task import Score
from polyphi.eval.tasks.text import humaneval_plus
from polyphi.messages import Message

SOURCE = Source(
    "evalplus",
    ("MbppPlus*.jsonl*",),
    "https://github.com/evalplus/mbppplus_release/releases (MbppPlus.jsonl.gz, v0.2.0)",
    fields=("task_id", "prompt", "canonical_solution", "entry_point", "base_input", "plus_input"),
    rows=378,
    hub=False,
)
SHOTS = ("Mbpp/2", "Mbpp/3", "Mbpp/4")
RULES = {
    "are_equivalent": "any",
    "sum_div": "zero",
    "surface_Area": "height",
    "digit_distance_nums": "digits",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "something"),
    **dict.fromkeys(
        (
            "similar_elements",
            "find_char_long",
            "common_in_nested_lists",
            "extract_singly",
            "larg_nnum",
            "intersection_array",
            "find_dissimilar",
            "Diff",
        ),
        "set",
    ),
}
"""EvalPlus' functions whose outputs aren't compared by equality alone."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _inner(value: list[Any]) -> list[Any]:
    return [tuple(item) for item in value]


# JSON has no tuples, sets or complex numbers: what the inputs of a problem are made of, by the problem's number.
_SHAPES: list[tuple[str, Callable[[list[Any]], Any]]] = [
    (
        "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809",
        _inner,
    ),
    (
        "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780",
        lambda args: [_inner(arg) for arg in args],
    ),
    ("75 413 444 753", lambda args: [_inner(args[0]), args[1]]),
    ("106 750", lambda args: [args[0], tuple(args[1])]),
    (
        "115",
        lambda args: [[set(x) if isinstance(x, list) and x else {} for x in args[0]]],
    ),
    ("124", lambda args: [float(args[0]), complex(args[1])]),
    ("250 405 446 617 720 763 808", lambda args: [tuple(args[0]), args[1]]),
    ("259 401 445", lambda args: [tuple(_inner(arg)) for arg in args]),
    ("278", lambda args: [tuple(tuple(x) if isinstance(x, list) else x for x in args[0])]),
    ("307", lambda args: [tuple(args[0]), args[1], args[2]]),
    ("722", lambda args: [{k: tuple(v) for k, v in args[0].items()}, *args[1:]]),
    ("252", lambda args: [complex(args[0])]),
    ("580 615 791", _tuples),
]
SHAPES = {int(number): shape for numbers, shape in _SHAPES for number in numbers.split()}


def load(data: Data) -> Iterator[Sample]:
    rows = list(data.rows(SOURCE))
    known = {row["task_id"]: row for row in rows}
    shots = [(known[k]["prompt"], known[k]["canonical_solution"]) for k in SHOTS]
    for row in rows:
        whole = row["prompt"] + row["canonical_solution"]
        reference = programs.fenced(row["canonical_solution"])
        yield Sample(
            row["task_id"],
            (*programs.asked(row["prompt"], shots), Message.assistant(reference)),
            "MbppPlus v0.2.0",
            "Apache-2.0",
            {
                "number": int(row["task_id"].rpartition("/")[2]),
                "entry": row["entry_point"],
                "prompt": "",
                "reference": whole,
                "tolerance": row["atol"],
                "inputs": json.dumps({"base": row["base_input"], "plus": row["plus_input"]}),
            },
        )


def trial(code: str, sample: Sample) -> programs.Trial:
    return humaneval_plus.trial(code, sample, RULES, SHAPES.get(sample.meta["number"], list))


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, programs.needed, programs.generous, ("base",))


def mini(root: Path) -> None:
    rows = [
        {
            "task_id": f"Mbpp/{number}",
            "prompt": f'"""\n{problem.text}\n{problem.asserts[0]}\n"""\n',
            "contract": "",
            "canonical_solution": "\n" + problem.code,
            "entry_point": problem.name,
            "base_input": [list(args) for args, _ in problem.calls],
            "plus_input": [list(args) for args in problem.more],
            "atol": problem.tolerance,
        }
        # The numbers of the shots, which have inputs of tuples where MBPP's problem 2 has.
        for number, problem in zip((4, 3, 2), PROBLEMS, strict=True)
    ]
    write_jsonl(root / SOURCE.name / "MbppPlus-v0.2.0.jsonl", rows)


benchmark = Benchmark(
    name="mbpp_plus",
    title="MBPP+",
    modality="text",
    rows=(
        Row("Table 8", "MBPP+"),
        Row("", "MBPP, base inputs by EvalPlus", part="base"),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=score_many,
    max_tokens=programs.MAX_TOKENS,
    unable=programs.unable,
    note="three solved problems in front, which EvalPlus itself doesn't have",
)
