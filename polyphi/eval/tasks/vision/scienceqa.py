"""ScienceQA (report, Table 1): school questions with options; the 2,017 of 4,241 test questions that have a picture."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.messages import Message

SOURCE = Source(
    "derek-thomas/ScienceQA",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("image", "question", "choices", "answer", "hint"),
    rows=4241,
)


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        if row["image"] is None:
            continue
        hint = f"Context: {row['hint']}\n" if row["hint"] else ""
        text = vqa.lettered(hint + row["question"], row["choices"])
        answer = "ABCDE"[int(row["answer"])]
        prompt = vqa.ask(text, [picture(row["image"])], vqa.CHOOSE)
        yield Sample(
            f"scienceqa-{number}",
            (prompt, Message.assistant(answer)),
            SOURCE.name,
            "CC-BY-SA-4.0",
            {"options": list(row["choices"])},
        )


def mini(root: Path) -> None:
    chart = drawn.cell(drawn.bars({"red": 3, "blue": 8}))
    shapes = drawn.cell(drawn.shapes(("circle", "green"), ("square", "red")))
    hint = "The chart shows how many frogs of each colour were counted."
    rows = [
        {"image": image, "question": question, "choices": held, "answer": answer, "hint": hint}
        for image, question, held, answer, hint in (
            (chart, "Which colour was counted more often?", ["red", "blue"], 1, hint),
            (chart, "How many red frogs were counted?", ["3", "8", "11"], 0, hint),
            (None, "Which of these is an animal?", ["a frog", "a stone"], 0, ""),
            (shapes, "Which shape is green?", ["the circle", "the square"], 0, ""),
        )
    ]
    write_parquet(root / SOURCE.name / "data/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    modality="vision",
    rows=(Row("Table 1", "ScienceQA (test, image)"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.letter,
)
