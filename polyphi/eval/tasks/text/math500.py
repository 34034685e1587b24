"""MATH-500 (report, Table 9): 500 problems of MATH's test set, a single run with a long chain of thought."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import boxed
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, write_jsonl
from polyphi.messages import Message

SOURCE = Source(
    "HuggingFaceH4/MATH-500",
    ("test.jsonl",),
    "the Hub",
    fields=("problem", "solution", "answer", "subject", "level"),
    rows=500,
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        told = {"answer": row["answer"], "level": row["level"], "subject": row["subject"]}
        reference = Message.assistant(f"\\boxed{{{row['answer']}}}")
        yield Sample(
            f"math500-{number}", (boxed.ask(row["problem"]), reference), SOURCE.name, "MIT", told
        )


def mini(root: Path) -> None:
    pairs = [
        ("What is $2^5$?", "32"),
        ("Write $0.75$ as a fraction.", "\\frac{3}{4}"),
        ("Give the point where $y = x + 1$ meets $x = 2$.", "(2, 3)"),
        ("Simplify $\\sqrt{12}$.", "2\\sqrt{3}"),
    ]
    rows = [
        {
            "problem": problem,
            "solution": f"It is $\\boxed{{{answer}}}$.",
            "answer": answer,
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/algebra/{number}.json",
        }
        for number, (problem, answer) in enumerate(pairs)
    ]
    write_jsonl(root / SOURCE.name / "test.jsonl", rows)


benchmark = Benchmark(
    name="math500",
    title="MATH-500",
    modality="text",
    rows=(Row("Table 9", "MATH-500", column="Phi-4-Mini (reasoning trained) 3.8B"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=boxed.verified,
    max_tokens=32768,
    sampling={"temperature": 0.6, "top_p": 0.95},
)
