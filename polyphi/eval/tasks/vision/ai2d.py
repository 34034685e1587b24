"""AI2D (report, Table 1): 3,088 questions about diagrams whose labels are masked by letters, with options."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.messages import Message

SOURCE = Source(
    "lmms-lab/ai2d",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question", "options", "answer", "image"),
    rows=3088,
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        options = [str(option) for option in row["options"]]
        text = vqa.lettered(row["question"], options)
        prompt = vqa.ask(text, [picture(row["image"])], vqa.CHOOSE)
        answer = "ABCDEFGH"[int(row["answer"])]
        yield Sample(
            f"ai2d-{number}",
            (prompt, Message.assistant(answer)),
            SOURCE.name,
            "CC-BY-SA-4.0",
            {"options": options},
        )


def mini(root: Path) -> None:
    two = drawn.shapes(("circle", "red"), ("triangle", "blue"))
    three = drawn.shapes(("square", "green"), ("circle", "blue"), ("circle", "red"))
    rows = [
        {"question": question, "options": held, "answer": answer, "image": drawn.cell(image)}
        for question, held, answer, image in (
            ("What colour is the triangle?", ["red", "blue", "green", "black"], "1", two),
            ("How many circles are there?", ["2", "1", "3", "4"], "0", three),
            ("What is green?", ["the circle", "the triangle", "the square", "none"], "2", three),
        )
    ]
    write_parquet(root / SOURCE.name / "data/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="ai2d",
    title="AI2D",
    modality="vision",
    rows=(Row("Table 1", "AI2D (test)"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.letter,
)
