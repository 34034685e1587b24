"""PIQA (report, Table 7): which of two ways reaches a goal, 1,838 times, by letters, 5 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("goal", "sol1", "sol2", "label")
NAME = "baber/piqa"
TEST = Source(NAME, ("piqa_validation.parquet",), "the Hub", fields=FIELDS, rows=1838)
TRAIN = Source(NAME, ("piqa_train.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_piqa")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 5), "validation": data.rows(TEST)}
    return samples(TASK, splits, "piqa", NAME, "AFL-3.0")


def mini(root: Path) -> None:
    ways = [
        ("To cut paper,", "use scissors.", "use a spoon."),
        ("To eat soup,", "use a spoon.", "use scissors."),
        ("To dry your hands,", "use a towel.", "use a tap."),
    ]
    rows = []
    for number in range(9):
        goal, right, wrong = ways[number % 3]
        label = number % 2
        first, second = (wrong, right) if label else (right, wrong)
        rows.append({"goal": goal, "sol1": first, "sol2": second, "label": label})
    write_parquet(root / NAME / "piqa_train.parquet", rows[:5])
    write_parquet(root / NAME / "piqa_validation.parquet", rows[5:])


benchmark = Benchmark(
    name="piqa",
    title="PIQA",
    modality="text",
    rows=(Row("Table 7", "PIQA"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
