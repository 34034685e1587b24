"""HellaSwag (report, Table 7): how 10,042 stories go on, by letters, 5 examples."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
NAME = "Rowan/hellaswag"
TEST = Source(NAME, ("data/validation-*.parquet",), "the Hub", fields=FIELDS, rows=10042)
TRAIN = Source(NAME, ("data/train-*.parquet",), "the Hub", fields=FIELDS)
TASK = letters("polyphi_hellaswag")


def load(data: Data) -> Iterator[Sample]:
    splits = {"train": islice(data.rows(TRAIN), 5), "validation": data.rows(TEST)}
    return samples(TASK, splits, "hellaswag", NAME, "MIT")


def mini(root: Path) -> None:
    things = ("bread", "a letter", "the floor", "a song")
    doings = ("Baking", "Writing", "Sweeping", "Singing")
    ends = ("puts it in the oven.", "signs it.", "fetches a broom.", "takes a breath.")
    rows = []
    for number in range(9):
        place, turn = number % 4, number % 3
        endings = [*ends[turn:], *ends[:turn]]
        rows.append(
            {
                "ind": number,
                "activity_label": doings[place],
                "ctx_a": f"[header] Day {number} [title] Somebody thinks of {things[place]}.",
                "ctx_b": "then the person",
                "endings": endings,
                "label": str(endings.index(ends[place])),
            }
        )
    write_parquet(root / NAME / "data/train-00000-of-00001.parquet", rows[:5])
    write_parquet(root / NAME / "data/validation-00000-of-00001.parquet", rows[5:])


benchmark = Benchmark(
    name="hellaswag",
    title="HellaSwag",
    modality="text",
    rows=(Row("Table 7", "HellaSwag"),),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
