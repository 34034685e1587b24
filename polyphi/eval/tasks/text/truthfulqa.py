"""TruthfulQA (report, Table 7): 817 questions that invite popular errors, by letters, 10 examples of the same set.

The report's row says MC2, which is a share of probability among true and false answers and can't come from letters.
Two readings of it are asked for: the one true choice among the false ones (MC1's choices), and the best true choice
against one false one.
"""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

SOURCE = Source(
    "truthfulqa/truthful_qa",
    ("multiple_choice/validation-*.parquet",),
    "the Hub",
    fields=("question", "mc1_targets", "mc2_targets"),
    rows=817,
)
TASKS = {form: letters(f"polyphi_truthfulqa_{form}") for form in ("mc1", "two")}


def load(data: Data) -> Iterator[Sample]:
    rows = list(data.rows(SOURCE))
    for form, task in TASKS.items():
        told = {"form": form}
        yield from samples(
            task, {"validation": rows}, f"truthfulqa-{form}", SOURCE.name, "Apache-2.0", told
        )


def mini(root: Path) -> None:
    rows = []
    for number in range(12):
        question = f"What follows {number} when one counts{'?' * (1 + number % 3)}"
        true = f"The number {number + 1}"
        false = [f"The number {number + k}" for k in (2, 3, 4)]
        rows.append(
            {
                "question": question,
                "mc1_targets": {"choices": [true, *false], "labels": [1, 0, 0, 0]},
                "mc2_targets": {
                    "choices": [true, f"{number + 1}", *false],
                    "labels": [1, 1, 0, 0, 0],
                },
            }
        )
    write_parquet(root / SOURCE.name / "multiple_choice/validation-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="truthfulqa",
    title="TruthfulQA",
    modality="text",
    rows=(
        Row("Table 7", "TruthfulQA MC2", {"form": "mc1"}),
        Row("", "TruthfulQA, the true one of two", {"form": "two"}),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
    note="The report's MC2 is ambiguous: letters over MC1's choices here; a probability mass is not measured.",
)
