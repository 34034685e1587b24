"""AIME 2024 (report, Table 9): 30 problems whose answers are whole numbers from 0 to 999.

The report's numbers are those of single runs, of which one problem is 3.3 points; the mean of 16 stands beside.
"""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import boxed
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, write_parquet
from polyphi.messages import Message

SOURCE = Source(
    "Maxwell-Jia/AIME_2024",
    ("*.parquet",),
    "the Hub",
    fields=("ID", "Problem", "Solution", "Answer"),
    rows=30,
)
RUNS = 16


def load(data: Data) -> Iterator[Sample]:
    rows = list(data.rows(SOURCE))
    for run in range(RUNS):
        for number, row in enumerate(rows):
            answer = str(int(row["Answer"]))
            yield Sample(
                f"aime-{number}-{run}",
                (boxed.ask(row["Problem"]), Message.assistant(f"\\boxed{{{answer}}}")),
                SOURCE.name,
                "MIT",
                {"answer": answer, "run": run, "seed": run},
            )


def mini(root: Path) -> None:
    rows = [
        {"ID": f"made-{n}", "Problem": problem, "Solution": f"$\\boxed{{{n}}}$", "Answer": n}
        for n, problem in [(21, "How many pairs can be made of $7$ people?"), (7, "What is $3+4$?")]
    ]
    write_parquet(root / SOURCE.name / "aime_2024_problems.parquet", rows)


benchmark = Benchmark(
    name="aime",
    title="AIME 2024",
    modality="text",
    rows=(
        Row("Table 9", "AIME 2024", {"run": 0}, column="Phi-4-Mini (reasoning trained) 3.8B"),
        Row("", f"AIME 2024, mean of {RUNS} runs"),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=boxed.verified,
    max_tokens=32768,
    sampling={"temperature": 0.6, "top_p": 0.95},
)
