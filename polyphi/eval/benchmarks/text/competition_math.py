"""Mathematics whose answers stand in a box, compared by math-verify: MATH (report, Table 7, the 5,000 test problems),
MATH-500 (Table 9) and AIME 2024 (Table 9, 30 problems whose answers are whole numbers from 0 to 999).

Those of Table 9 are single runs with a long chain of thought; of AIME one problem is 3.3 points, so that the mean of 16
runs stands beside.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import boxed
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source

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


def _sample(id: str, problem: str, answer: str, source: Source, meta: Mapping[str, Any]) -> Sample:
    return source.sample(id, boxed.ask(problem), f"\\boxed{{{answer}}}", {"answer": answer, **meta})


def math(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(MATH)):
        answer = boxed.last_box(row["solution"]) or plain_box(row["solution"])
        meta = {"level": row["level"], "subject": row["type"]}
        yield _sample(f"math-{number}", row["problem"], answer, MATH, meta)


def plain_box(solution: str) -> str:
    """A few solutions have \\boxed and a single number, or \\fbox."""
    _, _, rest = solution.replace("\\fbox", "\\boxed").rpartition("\\boxed")
    return (boxed.last_box(f"\\boxed{rest}") or rest.split("$")[0]).strip()


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


benchmarks = (
    Benchmark(
        name="math",
        title="MATH",
        modality="text",
        rows=(Row("Table 7", "MATH"),),
        sources=(MATH,),
        load=math,
        scorer=boxed.verified,
        max_tokens=2048,
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        modality="text",
        rows=(Row("Table 9", "MATH-500", column=COLUMN),),
        sources=(MATH500,),
        load=math500,
        scorer=boxed.verified,
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
        scorer=boxed.verified,
        max_tokens=REASONING_TOKENS,
        sampling=REASONING,
    ),
)
