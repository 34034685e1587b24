"""ARC-Challenge (report, Table 7): 1,172 school science questions by letters, 10 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("question", "choices", "answerKey")
NAME = "allenai/ai2_arc"
TEST = Source(NAME, ("ARC-Challenge/test-*.parquet",), "the Hub", fields=FIELDS, rows=1172)
TRAIN = Source(NAME, ("ARC-Challenge/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_arc_c")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 10), "test": data.rows(TEST)}
    return samples(TASK, splits, "arc_c", NAME, "CC-BY-SA-4.0")


def mini(root: Path) -> None:
    names = ("ice", "steam", "water", "sand")
    asked = [
        ("Which is a gas", "steam"),
        ("Which is frozen water", "ice"),
        ("Which is made of grains", "sand"),
        ("Which do fish swim in", "water"),
    ]
    rows = []
    for number in range(14):
        question, right = asked[number % 4]
        turn = number % 3
        texts = [*names[turn:], *names[:turn]]
        labels = list("ABCD") if number % 2 else list("1234")
        key = labels[texts.index(right)]
        choices = {"text": texts, "label": labels}
        rows.append({"question": f"{question} ({number})?", "choices": choices, "answerKey": key})
    write_parquet(root / NAME / "ARC-Challenge/train-00000-of-00001.parquet", rows[:10])
    write_parquet(root / NAME / "ARC-Challenge/test-00000-of-00001.parquet", rows[10:])


benchmark = Benchmark(
    name="arc_c",
    title="ARC-Challenge",
    modality="text",
    rows=(Row("Table 7", "Arc-C"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
