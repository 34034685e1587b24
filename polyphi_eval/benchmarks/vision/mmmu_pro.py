"""MMMU-Pro (report, Table 1): 1,730 questions of MMMU with up to ten options, as text and as screenshots of question
and options; the mean of the two."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.benchmarks.vision import mmmu
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SETTINGS = {"standard": "standard (10 options)", "vision": "vision"}
SOURCE = BenchmarkSource(
    "MMMU/MMMU_Pro",
    tuple(f"{folder}/test-*.parquet" for folder in SETTINGS.values()),
    "the Hub",
    fields=("id", "options", "answer"),
    rows=3460,
    licence="Apache-2.0",
)


def load(data: Data) -> Iterator[Sample]:
    for setting, folder in SETTINGS.items():
        for row in data.rows(SOURCE, f"{folder}/test-*.parquet"):
            if setting == "vision":
                prompt = Message.user(image_of(row["image"]), Text(vqa.CHOOSE))
            else:
                prompt = mmmu.question(row, vqa.CHOOSE)
            yield SOURCE.sample(
                f"{setting}/{row['id']}",
                prompt,
                row["answer"],
                {"setting": setting, "options": mmmu.options(row)},
            )


benchmark = Benchmark(
    name="mmmu_pro",
    title="MMMU-Pro",
    modality="vision",
    rows=(
        TableRow("Table 1", "MMMU-Pro (standard 10 options / vision, averaged)", by="setting"),
        TableRow("", "MMMU-Pro, standard", {"setting": "standard"}),
        TableRow("", "MMMU-Pro, vision", {"setting": "vision"}),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=vqa.mmmu_choice,
    max_tokens=1024,
)
