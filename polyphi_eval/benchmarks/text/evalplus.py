"""EvalPlus (report, Table 8): HumanEval's 164 functions and 378 of MBPP's on many more inputs; the reference solution's
outputs are the expected ones. Base and additional inputs both count, as in EvalPlus.

EvalPlus' prompts have no examples; the report has three for MBPP+, so MBPP's first three (task ids 2, 3, 4) are put in
front in EvalPlus' format. They also count as problems, as in the 378.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.services import sandbox
from polyphi_eval.sources import BenchmarkSource, Data
from polyphi_eval.trial import pack

FIELDS = ("task_id", "prompt", "canonical_solution", "entry_point", "base_input", "plus_input")
RELEASES = "https://github.com/evalplus"
HUMANEVAL = BenchmarkSource(
    "evalplus",
    ("HumanEvalPlus*.jsonl*",),
    f"{RELEASES}/humanevalplus_release/releases (HumanEvalPlus.jsonl.gz, v0.1.10)",
    fields=FIELDS,
    rows=164,
    hub=False,
)
MBPP = BenchmarkSource(
    "evalplus",
    ("MbppPlus*.jsonl*",),
    f"{RELEASES}/mbppplus_release/releases (MbppPlus.jsonl.gz, v0.2.0)",
    fields=FIELDS,
    rows=378,
    hub=False,
)
LIMITS = sandbox.Limits(seconds=60.0, cpu_seconds=10, memory_bytes=1 << 30)
SHOTS = ("Mbpp/2", "Mbpp/3", "Mbpp/4")
RULES = {
    "find_zero": "root",
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
"""Functions whose outputs aren't compared by equality alone: HumanEval's with many right outputs, and EvalPlus'
exceptions for MBPP."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _tuple_items(value: list[Any]) -> list[Any]:
    return [tuple(item) for item in value]


# JSON has no tuples, sets or complex numbers: these functions restore them in the inputs of the numbered problems.
_SHAPES: list[tuple[str, Callable[[list[Any]], Any]]] = [
    (
        "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809",
        _tuple_items,
    ),
    (
        "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780",
        lambda args: [_tuple_items(arg) for arg in args],
    ),
    ("75 413 444 753", lambda args: [_tuple_items(args[0]), args[1]]),
    ("106 750", lambda args: [args[0], tuple(args[1])]),
    ("115", lambda args: [[set(x) if isinstance(x, list) and x else {} for x in args[0]]]),
    ("124", lambda args: [float(args[0]), complex(args[1])]),
    ("250 405 446 617 720 763 808", lambda args: [tuple(args[0]), args[1]]),
    ("259 401 445", lambda args: [tuple(_tuple_items(arg)) for arg in args]),
    ("278", lambda args: [tuple(tuple(x) if isinstance(x, list) else x for x in args[0])]),
    ("307", lambda args: [tuple(args[0]), args[1], args[2]]),
    ("722", lambda args: [{k: tuple(v) for k, v in args[0].items()}, *args[1:]]),
    ("252", lambda args: [complex(args[0])]),
    ("580 615 791", _tuples),
]
SHAPES = {int(number): shape for numbers, shape in _SHAPES for number in numbers.split()}


def humaneval(data: Data) -> Iterator[Sample]:
    for row in data.rows(HUMANEVAL):
        program = row["prompt"] + row["canonical_solution"]
        yield Sample(
            row["task_id"],
            (*programs.prompt_messages(row["prompt"]), Message.assistant(programs.fenced(program))),
            "HumanEvalPlus v0.1.10",
            "Apache-2.0",
            {"entry": row["entry_point"], "prompt": row["prompt"], **_tests(row)},
        )


def mbpp(data: Data) -> Iterator[Sample]:
    rows = list(data.rows(MBPP))
    by_id = {row["task_id"]: row for row in rows}
    shots = [(by_id[k]["prompt"], by_id[k]["canonical_solution"]) for k in SHOTS]
    for row in rows:
        reference = programs.fenced(row["canonical_solution"])
        number = int(row["task_id"].rpartition("/")[2])
        yield Sample(
            row["task_id"],
            (*programs.prompt_messages(row["prompt"], shots), Message.assistant(reference)),
            "MbppPlus v0.2.0",
            "Apache-2.0",
            {"number": number, "entry": row["entry_point"], "prompt": "", **_tests(row)},
        )


def _tests(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference": row["prompt"] + row["canonical_solution"],
        "tolerance": row["atol"],
        "inputs": json.dumps({"base": row["base_input"], "plus": row["plus_input"]}),
    }


def trial(code: str, sample: Sample) -> programs.Trial:
    meta = sample.meta
    shape = SHAPES.get(meta.get("number", 0), list)
    tests = {
        "kind": "outputs",
        "reference": meta["reference"],
        "entry": meta["entry"],
        "rule": RULES.get(meta["entry"]),
        "tolerance": meta["tolerance"],
        "inputs": {
            group: [pack(shape(arguments)) for arguments in inputs]
            for group, inputs in json.loads(meta["inputs"]).items()
        },
    }
    return programs.Trial(code, tests, limits=LIMITS)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(
        pairs, trial, programs.strict_program, programs.lenient_programs, ("base",)
    )


evalplus = partial(
    Benchmark,
    modality="text",
    score_many=score_many,
    max_tokens=programs.MAX_TOKENS,
    unavailable=programs.unavailable,
)
benchmarks = (
    evalplus(
        name="humaneval_plus",
        title="HumanEval+",
        rows=(
            TableRow("Table 8", "HumanEval+"),
            TableRow("", "HumanEval, base inputs by EvalPlus", part="base"),
        ),
        sources=(HUMANEVAL,),
        load=humaneval,
    ),
    evalplus(
        name="mbpp_plus",
        title="MBPP+",
        rows=(
            TableRow("Table 8", "MBPP+"),
            TableRow("", "MBPP, base inputs by EvalPlus", part="base"),
        ),
        sources=(MBPP,),
        load=mbpp,
        note="the prompt has three solved problems, which EvalPlus' prompt doesn't have",
    ),
)
