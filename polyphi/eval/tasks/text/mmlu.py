"""MMLU (report, Table 7): 14,042 exam questions of 57 subjects by letters, 5 examples of the subject's own."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_parquet

FIELDS = ("question", "subject", "choices", "answer")
NAME = "cais/mmlu"
TEST = Source(NAME, ("all/test-*.parquet",), "the Hub", fields=FIELDS, rows=14042)
DEV = Source(NAME, ("all/dev-*.parquet",), "the Hub", fields=FIELDS, rows=285)
TASK = letters("polyphi_mmlu")


def load(data: Data) -> Iterator[Sample]:
    dev, test = by_subject(data, DEV), by_subject(data, TEST)
    for subject, rows in test.items():
        splits = {"dev": dev[subject], "test": rows}
        yield from samples(TASK, splits, f"mmlu-{subject}", NAME, "MIT", {"subject": subject})


def by_subject(data: Data, source: Source) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for row in data.rows(source):
        found[row["subject"]].append(row)
    return found


def mini(root: Path) -> None:
    rows = []
    for subject, step in (("elementary_mathematics", 3), ("high_school_mathematics", 7)):
        for number in range(8):
            answer = number % 4
            first = number + step - answer
            rows.append(
                {
                    "question": f"What is {number} + {step}?",
                    "subject": subject,
                    "choices": [str(first + k) for k in range(4)],
                    "answer": answer,
                }
            )
    dev = [row for i, row in enumerate(rows) if i % 8 < 5]
    test = [row for i, row in enumerate(rows) if i % 8 >= 5]
    write_parquet(root / NAME / "all/dev-00000-of-00001.parquet", dev)
    write_parquet(root / NAME / "all/test-00000-of-00001.parquet", test)


benchmark = Benchmark(
    name="mmlu",
    title="MMLU",
    modality="text",
    rows=(Row("Table 7", "MMLU"),),
    sources=(TEST, DEV),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)
