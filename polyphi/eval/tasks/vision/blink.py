"""BLINK (report, Table 1): 14 tasks that people solve within a blink, of one to four pictures each; micro average.

The report says "test", but has Phi-3.5-Vision's number for validation beside its own: it is the 1,901 validation
questions.
"""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.messages import Message

TASKS = (
    *("Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test"),
    *("Jigsaw", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth"),
    *("Relative_Reflectance", "Semantic_Correspondence", "Spatial_Relation"),
    *("Visual_Correspondence", "Visual_Similarity"),
)
SOURCE = Source(
    "BLINK-Benchmark/BLINK",
    tuple(f"{task}/val-*.parquet" for task in TASKS),
    "the Hub",
    fields=("idx", "sub_task", "image_1", "image_4", "choices", "answer", "prompt"),
    rows=1901,
)


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        images = [picture(row[f"image_{k}"]) for k in range(1, 5) if row[f"image_{k}"]]
        prompt = vqa.ask(row["prompt"], images, vqa.CHOOSE)
        yield Sample(
            row["idx"],
            (prompt, Message.assistant(row["answer"].strip("()"))),
            SOURCE.name,
            "Apache-2.0",
            {"task": row["sub_task"], "options": [str(choice) for choice in row["choices"]]},
        )


def mini(root: Path) -> None:
    kinds, colours = ("circle", "square", "triangle"), ("red", "blue", "green", "black")
    for number, task in enumerate(TASKS):
        count = 1 + number % 4
        seen = [drawn.shapes((kinds[k % 3], colours[k])) for k in range(count)]
        held, asked = ["red", "blue"], f"What colour is the {kinds[0]} of the first picture?"
        if count > 1:
            held, asked = ["the first", "the second"], "Which picture has a square?"
        row = {
            "idx": f"val_{task}_1",
            "sub_task": task,
            **{f"image_{k + 1}": drawn.cell(seen[k]) if k < count else None for k in range(4)},
            "choices": held,
            "answer": "(B)" if count > 1 else "(A)",
            "prompt": f"{asked} Select from the following choices.\n"
            + "\n".join(f"({a}) {o}" for a, o in vqa.letters(held).items()),
        }
        write_parquet(root / SOURCE.name / task / "val-00000-of-00001.parquet", [row])


benchmark = Benchmark(
    name="blink",
    title="BLINK",
    modality="vision",
    rows=(Row("Table 1", "BLINK"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.letter,
)
