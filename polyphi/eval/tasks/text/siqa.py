"""SocialIQA (report, Table 7): 1,954 questions about people in everyday life by letters, 5 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("context", "question", "answerA", "answerB", "answerC", "label")
NAME = "lighteval/siqa"
TEST = Source(NAME, ("data/validation-*.parquet",), "the Hub", fields=FIELDS, rows=1954)
TRAIN = Source(NAME, ("data/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_siqa")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 5), "validation": data.rows(TEST)}
    return samples(TASK, splits, "siqa", NAME, "CC-BY-4.0")


def mini(root: Path) -> None:
    told = [("won a race", "proud"), ("broke a cup", "sorry"), ("slept badly", "tired")]
    feelings = [feeling for _, feeling in told]
    rows = []
    for number in range(9):
        event, right = told[number % 3]
        turn = number // 3
        a, b, c = [*feelings[turn:], *feelings[:turn]]
        rows.append(
            {
                "context": f"Kim {event}.",
                "question": "How does Kim feel?",
                "answerA": a,
                "answerB": b,
                "answerC": c,
                "label": str([a, b, c].index(right) + 1),
            }
        )
    write_parquet(root / NAME / "data/train-00000-of-00001.parquet", rows[:5])
    write_parquet(root / NAME / "data/validation-00000-of-00001.parquet", rows[5:])


benchmark = Benchmark(
    name="siqa",
    title="SocialIQA",
    modality="text",
    rows=(Row("Table 7", "SociQA"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
