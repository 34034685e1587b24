"""MMMU-Pro (report, Table 1): 1,730 questions of MMMU with up to ten options, written and again as pictures of a screen
that hold question and options; the mean of the two."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.eval.tasks.vision import mmmu
from polyphi.messages import Message, Text

SETTINGS = {"standard": "standard (10 options)", "vision": "vision"}
SOURCE = Source(
    "MMMU/MMMU_Pro",
    tuple(f"{folder}/test-*.parquet" for folder in SETTINGS.values()),
    "the Hub",
    fields=("id", "options", "answer"),
    rows=3460,
)


def load(data: Data) -> Iterator[Sample]:
    for setting, folder in SETTINGS.items():
        for row in data.rows(SOURCE, f"{folder}/test-*.parquet"):
            if setting == "vision":
                prompt = Message.user(picture(row["image"]), Text(vqa.CHOOSE))
            else:
                prompt = mmmu.question(row, vqa.CHOOSE)
            yield Sample(
                f"{setting}/{row['id']}",
                (prompt, Message.assistant(row["answer"])),
                SOURCE.name,
                "Apache-2.0",
                {"setting": setting, "options": mmmu.options(row)},
            )


def mini(root: Path) -> None:
    standard: list[dict[str, Any]] = []
    vision: list[dict[str, Any]] = []
    for number, (colour, answer) in enumerate([("red", "C"), ("blue", "A")]):
        held = ["blue", "green", "red", "black", "yellow", "grey", "pink", "brown", "white", "cyan"]
        row = {"id": f"test_Art_{number}", "options": str(held), "answer": answer}
        seen = drawn.cell(drawn.shapes(("circle", colour)))
        images = {f"image_{k}": seen if k == 1 else None for k in range(1, 8)}
        standard.append({**row, "question": "<image 1> What colour is the circle?", **images})
        lines = vqa.lettered(f'Which option says "{colour}"?', held).split("\n")
        vision.append({**row, "image": drawn.cell(drawn.page(*lines))})
    for folder, rows in zip(SETTINGS.values(), (standard, vision), strict=True):
        write_parquet(root / SOURCE.name / folder / "test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="mmmu_pro",
    title="MMMU-Pro",
    modality="vision",
    rows=(
        Row("Table 1", "MMMU-Pro (standard 10 options / vision, averaged)", by="setting"),
        Row("", "MMMU-Pro, standard", {"setting": "standard"}),
        Row("", "MMMU-Pro, vision", {"setting": "vision"}),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.mmmu_choice,
    max_tokens=1024,
)
