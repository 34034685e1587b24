"""Mathematics with boxed answers, compared by math-verify: MATH (report, Table 7, the 5,000 test problems), MATH-500
(Table 9) and AIME 2024 (Table 9, 30 problems whose answers are integers from 0 to 999).

The rows of Table 9 are single runs with a long chain of thought. One AIME problem is worth 3.3 points, so the mean of
16 runs has a row too.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data

MATH = BenchmarkSource(
    "EleutherAI/hendrycks_math",
    ("*/test-*.parquet",),
    "the Hub",
    fields=("problem", "level", "type", "solution"),
    rows=5000,
    licence="MIT",
)
MATH500 = BenchmarkSource(
    "HuggingFaceH4/MATH-500",
    ("test.jsonl",),
    "the Hub",
    fields=("problem", "solution", "answer", "subject", "level"),
    rows=500,
    licence="MIT",
)
AIME = BenchmarkSource(
    "Maxwell-Jia/AIME_2024",
    ("*.parquet",),
    "the Hub",
    fields=("ID", "Problem", "Solution", "Answer"),
    rows=30,
    licence="MIT",
)
RUNS = 16
REASONING_TOKENS, REASONING = 32768, {"temperature": 0.6, "top_p": 0.95}
"""Token limit and sampling of answers with a long chain of thought."""
COLUMN = "Phi-4-Mini (reasoning trained) 3.8B"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Our own prompt: the report prints none."""


def prompt_of(problem: str) -> Message:
    return Message.user(f"{problem.strip()}\n\n{INSTRUCTION}")


def _sample(
    id: str, problem: str, answer: str, source: BenchmarkSource, meta: Mapping[str, Any]
) -> Sample:
    return source.sample(id, prompt_of(problem), f"\\boxed{{{answer}}}", {"answer": answer, **meta})


def math(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(MATH)):
        answer = last_box(row["solution"]) or plain_box(row["solution"])
        meta = {"level": row["level"], "subject": row["type"]}
        yield _sample(f"math-{number}", row["problem"], answer, MATH, meta)


def plain_box(solution: str) -> str:
    """The answer of the few solutions that have \\boxed and a single number, or \\fbox."""
    _, _, rest = solution.replace("\\fbox", "\\boxed").rpartition("\\boxed")
    return (last_box(f"\\boxed{rest}") or rest.split("$")[0]).strip()


def math500(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(MATH500)):
        meta = {"level": row["level"], "subject": row["subject"]}
        yield _sample(f"math500-{number}", row["problem"], row["answer"], MATH500, meta)


def aime(data: Data) -> Iterator[Sample]:
    rows = list(data.rows(AIME))
    for run in range(RUNS):
        for number, row in enumerate(rows):
            answer, meta = str(int(row["Answer"])), {"run": run, "seed": run}
            yield _sample(f"aime-{number}-{run}", row["Problem"], answer, AIME, meta)


# ---------------------------------------------------------------------- boxed answers

SECONDS = 2
"""Time limit for parsing or comparing an expression (9^{9^{9^9}} never ends). It uses an alarm signal, so it applies
only in the main thread."""
MAX_BOX_CHARS = 500
MAX_END_CHARS = 2000
"""Most characters that are parsed: of a box, and of the end of an answer without a box."""


def last_box(text: str) -> str | None:
    """The content of a text's last \\boxed{...}, or None if there is none or it isn't closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : index]
    return None


def score_boxed(answer: str, sample: Sample) -> Score:
    """Whether the last box equals the reference; lenient: if there is no box, the answer's end."""
    box, reference = last_box(answer), references(sample)[0]
    if box is None:
        return Score(0.0, "", {LENIENT: float(equal(reference, answer[-MAX_END_CHARS:]))})
    right = float(len(box) <= MAX_BOX_CHARS and equal(reference, f"${box}$"))
    return Score(right, box[:MAX_BOX_CHARS], {LENIENT: right})


def equal(reference: str, text: str) -> bool:
    """Whether a text equals the reference expression (LaTeX without dollar signs), by math-verify."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # timeouts count as wrong
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else 0
    try:
        expressions = [parse(t, parsing_timeout=seconds) for t in (f"${reference}$", text)]
        return bool(verify(*expressions, timeout_seconds=seconds))
    except Exception:  # sympy raises any error for odd answers; they are wrong
        return False


benchmarks = (
    Benchmark(
        name="math",
        title="MATH",
        modality="text",
        rows=(TableRow("Table 7", "MATH"),),
        sources=(MATH,),
        load=math,
        scorer=score_boxed,
        max_tokens=2048,
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        modality="text",
        rows=(TableRow("Table 9", "MATH-500", column=COLUMN),),
        sources=(MATH500,),
        load=math500,
        scorer=score_boxed,
        max_tokens=REASONING_TOKENS,
        sampling=REASONING,
    ),
    Benchmark(
        name="aime",
        title="AIME 2024",
        modality="text",
        rows=(
            TableRow("Table 9", "AIME 2024", {"run": 0}, column=COLUMN),
            TableRow("", f"AIME 2024, mean of {RUNS} runs"),
        ),
        sources=(AIME,),
        load=aime,
        scorer=score_boxed,
        max_tokens=REASONING_TOKENS,
        sampling=REASONING,
    ),
)
