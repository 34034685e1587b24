"""ChartQA (report, Table 1): 2,500 questions about charts, half of them by people; relaxed accuracy over all."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "lmms-lab/ChartQA",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("type", "question", "answer", "image"),
    rows=2500,
    licence="GPL-3.0",
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        prompt = vqa.ask(row["question"], [image_of(row["image"])], vqa.SHORT)
        origin = str(row["type"]).removesuffix("_test")
        yield SOURCE.sample(f"chartqa-{number}", prompt, row["answer"], {"kind": origin})


benchmark = Benchmark(
    name="chartqa",
    title="ChartQA",
    modality="vision",
    rows=(
        TableRow("Table 1", "ChartQA (test)"),
        TableRow("", "ChartQA, questions by people", {"kind": "human"}),
        TableRow("", "ChartQA, made questions", {"kind": "augmented"}),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=vqa.relaxed,
)
