"""LiveCodeBench (report, Table 8): problems of programming contests from May to September 2024.

The report's label "(05-09-2024)" is taken as these months of release 4. Its numbers are of 191 problems, so the row's n
must be 191. The JSON lines are read directly, without the data set's loading script; of pickled tests, only text is
unpickled.
"""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.services import sandbox
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "livecodebench/code_generation_lite",
    ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl"),
    "the Hub",
    fields=("question_content", "contest_date", "public_test_cases", "private_test_cases"),
    rows=713,
    licence="cc",
)
FIRST, LAST = "2024-05-01", "2024-09-30"
PROBLEMS = 191
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)
SECONDS = 6.0
"""Time limit of a test."""
MAX_PICKLE_BYTES = 1 << 30
_STARRED = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys"
IMPORTS = "\n".join(
    [
        *(f"from {name} import *" for name in (*_STARRED.split(), "json", "builtins", "typing")),
        *(f"import {name}" for name in (*_STARRED.split(), "json")),
        "sys.setrecursionlimit(50000)",
    ]
)
"""Imports that LiveCodeBench puts in front of every answer."""


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        if not FIRST <= str(row["contest_date"])[:10] <= LAST:
            continue
        starter = row["starter_code"]
        code, form = (starter, WITH_STARTER) if starter else ("# YOUR CODE HERE", WITHOUT_STARTER)
        prompt = (
            f"### Question:\n{row['question_content']}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
            "### Answer: (use the provided format with backticks)\n\n"
        )
        # The data set has no solutions; our synthetic fixtures do.
        yield SOURCE.sample(
            f"livecodebench-{row['question_id']}",
            [Message.system(SYSTEM), Message.user(prompt)],
            row.get("solution", ""),
            {
                "entry": json.loads(row["metadata"]).get("func_name"),
                "public": row["public_test_cases"],
                "private": row["private_test_cases"],
            },
        )


def cases(public: str, private: str) -> list[dict[str, Any]]:
    """The public and private tests of a problem: JSON, or JSON text that is pickled, compressed, in base64. Raises
    ValueError for other pickles."""
    tests: list[dict[str, Any]] = json.loads(public)
    try:
        return tests + json.loads(private)
    except json.JSONDecodeError:
        compressed = base64.b64decode(private)
    pickled = zlib.decompressobj().decompress(compressed, MAX_PICKLE_BYTES)
    content = _DataUnpickler(io.BytesIO(pickled)).load()
    if not isinstance(content, str | bytes):
        raise ValueError(f"expected pickled text, found {type(content).__name__}")
    return tests + json.loads(content)


class _DataUnpickler(pickle.Unpickler):
    """Unpickles text, numbers, lists and dicts; rejects every pickle that refers to a class or function."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"expected pickled text, found a pickle that would run {module}.{name}")

    def persistent_load(self, number: Any) -> Any:
        raise ValueError("expected pickled text, found a reference to an external object")


def trial(code: str, sample: Sample) -> programs.Trial:
    meta = sample.meta
    tests = [
        {"input": c["input"], "output": c["output"]} for c in cases(meta["public"], meta["private"])
    ]
    limits = sandbox.Limits(
        seconds=min(900.0, 30.0 + (SECONDS + 1) * len(tests)), cpu_seconds=300, memory_bytes=2 << 30
    )
    settings = {"kind": "cases", "cases": tests, "entry": meta["entry"], "seconds": SECONDS}
    return programs.Trial(code, settings, IMPORTS, limits)


def _strict(answer: str, sample: Sample) -> str:
    return programs.last_block(answer)


def _lenient(answer: str, sample: Sample) -> list[str]:
    return [*programs.blocks(answer)[:1], programs.longest_program(answer)]


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, _strict, _lenient)


benchmark = Benchmark(
    name="livecodebench",
    title="LiveCodeBench",
    modality="text",
    rows=(TableRow("Table 8", "LiveCodeBench (05-09-2024)"),),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=2000,
    unavailable=programs.unavailable,
    note=f"contests from {FIRST} to {LAST} of release 4; the report's numbers are of {PROBLEMS} problems",
)
