"""Mathematics whose answers stand in a box, compared by math-verify: MATH (report, Table 7, the 5,000 test problems),
MATH-500 (Table 9) and AIME 2024 (Table 9, 30 problems whose answers are whole numbers from 0 to 999).

Those of Table 9 are single runs with a long chain of thought; of AIME one problem is 3.3 points, so that the mean of 16
runs stands beside.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import LENIENT, Benchmark, Row, Score
from polyphi.eval.scorers import references
from polyphi.eval.sources import Data, Source
from polyphi.messages import Message

MATH = Source(
    "EleutherAI/hendrycks_math",
    ("*/test-*.parquet",),
    "the Hub",
    fields=("problem", "level", "type", "solution"),
    rows=5000,
    licence="MIT",
)
MATH500 = Source(
    "HuggingFaceH4/MATH-500",
    ("test.jsonl",),
    "the Hub",
    fields=("problem", "solution", "answer", "subject", "level"),
    rows=500,
    licence="MIT",
)
AIME = Source(
    "Maxwell-Jia/AIME_2024",
    ("*.parquet",),
    "the Hub",
    fields=("ID", "Problem", "Solution", "Answer"),
    rows=30,
    licence="MIT",
)
RUNS = 16
REASONING_TOKENS, REASONING = 32768, {"temperature": 0.6, "top_p": 0.95}
"""Tokens of an answer with a long chain of thought, and how they are sampled."""
COLUMN = "Phi-4-Mini (reasoning trained) 3.8B"
ASK = "Please reason step by step, and put your final answer within \\boxed{}."
"""Our own words: the report prints none."""


def prompt_of(problem: str) -> Message:
    return Message.user(f"{problem.strip()}\n\n{ASK}")


def _sample(id: str, problem: str, answer: str, source: Source, meta: Mapping[str, Any]) -> Sample:
    return source.sample(id, prompt_of(problem), f"\\boxed{{{answer}}}", {"answer": answer, **meta})


def math(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(MATH)):
        answer = last_box(row["solution"]) or plain_box(row["solution"])
        meta = {"level": row["level"], "subject": row["type"]}
        yield _sample(f"math-{number}", row["problem"], answer, MATH, meta)


def plain_box(solution: str) -> str:
    """A few solutions have \\boxed and a single number, or \\fbox."""
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


# ---------------------------------------------------------------------- answers in boxes

SECONDS = 2
"""That reading or comparing an expression may take (9^{9^{9^9}} takes any time). It's an alarm, so that there is no
such bound in other threads than the main one."""
LONGEST_BOX = 500
LONGEST_END = 2000
"""Characters that are parsed, at most: of a box, and of the end of an answer without one."""


def last_box(text: str) -> str | None:
    """What stands in the last \\boxed{...} of a text; None where none is closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def verified(answer: str, sample: Sample) -> Score:
    """What the last box holds equals the reference; generously, where there is no box, what the answer's end says."""
    box, reference = last_box(answer), references(sample)[0]
    if box is None:
        return Score(0.0, "", {LENIENT: float(equal(reference, answer[-LONGEST_END:]))})
    right = float(len(box) <= LONGEST_BOX and equal(reference, f"${box}$"))
    return Score(right, box[:LONGEST_BOX], {LENIENT: right})


def equal(reference: str, text: str) -> bool:
    """Whether a text gives the wanted expression (LaTeX without dollars), by math-verify."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # what takes too long is wrong
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else 0
    try:
        expressions = [parse(t, parsing_timeout=seconds) for t in (f"${reference}$", text)]
        return bool(verify(*expressions, timeout_seconds=seconds))
    except Exception:  # what sympy meets in answers is not for it to refuse: wrong
        return False


benchmarks = (
    Benchmark(
        name="math",
        title="MATH",
        modality="text",
        rows=(Row("Table 7", "MATH"),),
        sources=(MATH,),
        load=math,
        scorer=verified,
        max_tokens=2048,
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        modality="text",
        rows=(Row("Table 9", "MATH-500", column=COLUMN),),
        sources=(MATH500,),
        load=math500,
        scorer=verified,
        max_tokens=REASONING_TOKENS,
        sampling=REASONING,
    ),
    Benchmark(
        name="aime",
        title="AIME 2024",
        modality="text",
        rows=(
            Row("Table 9", "AIME 2024", {"run": 0}, column=COLUMN),
            Row("", f"AIME 2024, mean of {RUNS} runs"),
        ),
        sources=(AIME,),
        load=aime,
        scorer=verified,
        max_tokens=REASONING_TOKENS,
        sampling=REASONING,
    ),
)
