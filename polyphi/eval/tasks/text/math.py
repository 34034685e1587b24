"""MATH (report, Table 7): the 5,000 test problems, 0 examples, a chain of thought that ends in a box."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import boxed
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, write_parquet
from polyphi.messages import Message

SOURCE = Source(
    "EleutherAI/hendrycks_math",
    ("*/test-*.parquet",),
    "the Hub",
    fields=("problem", "level", "type", "solution"),
    rows=5000,
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        answer = boxed.last_box(row["solution"]) or plain_box(row["solution"])
        told = {"answer": answer, "level": row["level"], "subject": row["type"]}
        reference = Message.assistant(f"\\boxed{{{answer}}}")
        yield Sample(
            f"math-{number}", (boxed.ask(row["problem"]), reference), SOURCE.name, "MIT", told
        )


def plain_box(solution: str) -> str:
    """A few solutions have \\boxed and a single number, or \\fbox."""
    _, _, rest = solution.replace("\\fbox", "\\boxed").rpartition("\\boxed")
    return (boxed.last_box(f"\\boxed{rest}") or rest.split("$")[0]).strip()


def mini(root: Path) -> None:
    made = {
        "algebra": [("Solve $2x = 1$ for $x$.", "x = \\boxed{\\frac{1}{2}}")],
        "geometry": [("A square has sides of $3$. What is its area?", "It is $\\boxed{9}$.")],
        "number_theory": [("What is $17$ modulo $5$?", "$17 = 3 \\cdot 5 + 2$: $\\boxed 2$.")],
        "precalculus": [("Where is $\\sqrt{x}$ real?", "On $\\boxed{[0,\\infty)}$.")],
    }
    for subject, pairs in made.items():
        rows = [
            {"problem": p, "level": "Level 1", "type": subject.title(), "solution": s}
            for p, s in pairs
        ]
        write_parquet(root / SOURCE.name / subject / "test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="math",
    title="MATH",
    modality="text",
    rows=(Row("Table 7", "MATH"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=boxed.verified,
    max_tokens=2048,
)
