"""ChartQA (report, Table 1): 2,500 questions about charts, half of them by people; relaxed accuracy over all."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.messages import Message

SOURCE = Source(
    "lmms-lab/ChartQA",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("type", "question", "answer", "image"),
    rows=2500,
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        prompt = vqa.ask(row["question"], [picture(row["image"])], vqa.SHORT)
        kind = str(row["type"]).removesuffix("_test")
        yield Sample(
            f"chartqa-{number}",
            (prompt, Message.assistant(row["answer"])),
            SOURCE.name,
            "GPL-3.0",
            {"kind": kind},
        )


def mini(root: Path) -> None:
    rows, names = [], ("red", "green", "blue")
    for number, heights in enumerate([(3, 7, 5), (8, 2, 6), (4, 9, 1)]):
        image = drawn.cell(drawn.bars(dict(zip(names, heights, strict=True))))
        asked = [
            ("human", f"What is the value of the {names[number]} bar?", str(heights[number])),
            ("augmented", "Which bar is the highest?", names[heights.index(max(heights))]),
        ]
        rows += [
            {"type": f"{kind}_test", "question": q, "answer": a, "image": image}
            for kind, q, a in asked
        ]
    write_parquet(root / SOURCE.name / "data/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="chartqa",
    title="ChartQA",
    modality="vision",
    rows=(
        Row("Table 1", "ChartQA (test)"),
        Row("", "ChartQA, questions by people", {"kind": "human"}),
        Row("", "ChartQA, made questions", {"kind": "augmented"}),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.relaxed,
)
