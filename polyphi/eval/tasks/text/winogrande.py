"""WinoGrande (report, Table 7): who or what fills the blank of 1,267 sentences, by letters, 5 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("sentence", "option1", "option2", "answer")
NAME = "allenai/winogrande"
TEST = Source(NAME, ("winogrande_xl/validation-*.parquet",), "the Hub", fields=FIELDS, rows=1267)
TRAIN = Source(NAME, ("winogrande_xl/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_winogrande")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 5), "validation": data.rows(TEST)}
    return samples(TASK, splits, "winogrande", NAME, "CC-BY-4.0")


def mini(root: Path) -> None:
    rows = []
    for number in range(9):
        small = number % 2 == 0
        word, answer = ("small", "2") if small else ("big", "1")
        rows.append(
            {
                "sentence": f"Box {number} didn't hold the ball because the _ was too {word}.",
                "option1": "ball",
                "option2": "box",
                "answer": answer,
            }
        )
    write_parquet(root / NAME / "winogrande_xl/train-00000-of-00001.parquet", rows[:5])
    write_parquet(root / NAME / "winogrande_xl/validation-00000-of-00001.parquet", rows[5:])


benchmark = Benchmark(
    name="winogrande",
    title="WinoGrande",
    modality="text",
    rows=(Row("Table 7", "WinoGrande"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
