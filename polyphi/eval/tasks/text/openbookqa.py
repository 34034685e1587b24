"""OpenBookQA (report, Table 7): 500 questions of common knowledge by letters, 10 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("question_stem", "choices", "answerKey")
NAME = "allenai/openbookqa"
TEST = Source(NAME, ("main/test-*.parquet",), "the Hub", fields=FIELDS, rows=500)
TRAIN = Source(NAME, ("main/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_openbookqa")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 10), "test": data.rows(TEST)}
    return samples(TASK, splits, "openbookqa", NAME, "Apache-2.0")


def mini(root: Path) -> None:
    pairs = [("The sun gives", "light"), ("A fridge gives", "cold"), ("A bell gives", "sound")]
    rows = []
    for number in range(14):
        stem, right = pairs[number % 3]
        turn = number % 4
        texts = ["light", "cold", "sound", "nothing"]
        texts = [*texts[turn:], *texts[:turn]]
        rows.append(
            {
                "id": f"made-{number}",
                "question_stem": stem,
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[texts.index(right)],
            }
        )
    write_parquet(root / NAME / "main/train-00000-of-00001.parquet", rows[:10])
    write_parquet(root / NAME / "main/test-00000-of-00001.parquet", rows[10:])


benchmark = Benchmark(
    name="openbookqa",
    title="OpenBookQA",
    modality="text",
    rows=(Row("Table 7", "OpenBookQA"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
