"""GPQA Diamond (report, Table 9): 198 questions, a single run with a long chain of thought."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import scoring
from polyphi.eval.sources import Data, Source
from polyphi.eval.tasks.text import gpqa

SOURCE = Source("Idavidrein/gpqa", ("gpqa_diamond.csv",), gpqa.WHERE, fields=gpqa.FIELDS, rows=198)


def load(data: Data) -> Iterator[Sample]:
    return gpqa.questions(data, SOURCE, "gpqa_diamond_cot_zeroshot")


def mini(root: Path) -> None:
    gpqa.write_questions(root / SOURCE.name / "gpqa_diamond.csv")


benchmark = Benchmark(
    name="gpqa_diamond",
    title="GPQA Diamond",
    modality="text",
    rows=(Row("Table 9", "GPQA Diamond", column="Phi-4-Mini (reasoning trained) 3.8B"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(gpqa.task),
    max_tokens=32768,
    sampling={"temperature": 0.6, "top_p": 0.95},
)
