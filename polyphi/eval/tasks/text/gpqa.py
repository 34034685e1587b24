"""GPQA (report, Table 7): the 448 questions of the main set, 0 examples, with a chain of thought."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import LmTask, samples, scoring
from polyphi.eval.sources import Data, Source

CORRECT, INCORRECT = "Correct Answer", [f"Incorrect Answer {n}" for n in (1, 2, 3)]
FIELDS = ("Question", CORRECT, *INCORRECT)
WHERE = "the Hub, once its terms are accepted"
SOURCE = Source("Idavidrein/gpqa", ("gpqa_main.csv",), WHERE, fields=FIELDS, rows=448)
CHAIN = r"(?s)\A(?:.*[aA]nswer is:?\W{0,4}([A-D])(?![\w'])|.*\(([A-D])\)|.*[aA]nswer:\W{0,4}([A-D])(?![\w']))"
"""The last "answer is X", otherwise the last "(X)", otherwise the last "Answer: X"."""


def task(name: str) -> LmTask:
    filters = [{"function": "regex", "regex_pattern": CHAIN}, {"function": "take_first"}]
    changes = {
        "training_split": None,
        "filter_list": [{"name": "chain", "filter": filters}],
    }
    return LmTask(name, "gpqa/cot_zeroshot", changes, strict="chain")


def questions(data: Data, source: Source, name: str) -> Iterator[Sample]:
    """The requests of `source`, for lm-eval's task `name`. Options stand in an order that a fixed seed gives."""
    rows = ({key: row[key] for key in FIELDS} for row in data.rows(source))
    return samples(task(name), {"train": rows}, name, source.name, "CC-BY-4.0")


def load(data: Data) -> Iterator[Sample]:
    return questions(data, SOURCE, "gpqa_main_cot_zeroshot")


def write_questions(path: Path) -> None:
    """Questions of our own as the data set has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(f'"{name}"' for name in FIELDS)]
    for n in (11, 13, 17, 19):
        values = [f"What is {n} squared?", n * n, n * n + 1, n * n - 1, n * n + 10]
        lines.append(",".join(f'"{value}"' for value in values))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def mini(root: Path) -> None:
    write_questions(root / SOURCE.name / "gpqa_main.csv")


benchmark = Benchmark(
    name="gpqa",
    title="GPQA",
    modality="text",
    rows=(Row("Table 7", "GPQA"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(task),
    max_tokens=2048,
)
