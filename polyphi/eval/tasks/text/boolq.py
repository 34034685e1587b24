"""BoolQ (report, Table 7): 3,270 yes-or-no questions about passages, by letters, 2 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("question", "passage", "answer")
NAME = "google/boolq"
TEST = Source(NAME, ("data/validation-*.parquet",), "the Hub", fields=FIELDS, rows=3270)
TRAIN = Source(NAME, ("data/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_boolq")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 2), "validation": data.rows(TEST)}
    return samples(TASK, splits, "boolq", NAME, "CC-BY-SA-3.0")


def mini(root: Path) -> None:
    rows = []
    legs_of = {"spider": 8, "bird": 2, "horse": 4, "ant": 6, "crab": 10, "hen": 2}
    for animal, legs in legs_of.items():
        rows.append(
            {
                "question": f"does a {animal} have more than four legs",
                "answer": legs > 4,
                "passage": f"A {animal} has {legs} legs.",
            }
        )
    write_parquet(root / NAME / "data/train-00000-of-00001.parquet", rows[:2])
    write_parquet(root / NAME / "data/validation-00000-of-00001.parquet", rows[2:])


benchmark = Benchmark(
    name="boolq",
    title="BoolQ",
    modality="text",
    rows=(Row("Table 7", "BoolQ"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
    note="Yes and no are asked for as letters, like the other choices; the report doesn't say how.",
)
