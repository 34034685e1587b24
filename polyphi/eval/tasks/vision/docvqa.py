"""DocVQA (report, Table 1): questions about scanned pages; ANLS.

The report's number is of the 5,188 test questions, whose answers only the challenge's server has. Ours is of the 5,349
validation ones; where the test files lie below DIR too, their answers go into `docvqa.submission.json` for that server.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.messages import Message

SPLITS = ("validation", "test")


def source(folder: str, split: str, rows: int) -> Source:
    return Source(
        "lmms-lab/DocVQA",
        (f"{folder}/{split}-*.parquet",),
        "the Hub",
        fields=("questionId", "question", "answers", "image"),
        rows=rows,
    )


VALIDATION, TEST = source("DocVQA", "validation", 5349), source("DocVQA", "test", 5188)


def load(data: Data) -> Iterator[Sample]:
    yield from questions(data, VALIDATION, hidden=False)
    if data.has(TEST):
        yield from questions(data, TEST, hidden=True)


def questions(data: Data, source: Source, hidden: bool) -> Iterator[Sample]:
    """The questions of a split; those of a test split have no answers."""
    for row in data.rows(source):
        answers = [] if hidden else list(row["answers"])
        prompt = vqa.ask(row["question"], [picture(row["image"])], vqa.SHORT)
        number = int(row["questionId"])
        yield Sample(
            f"{source.files[0].partition('-')[0]}/{number}",
            (prompt, Message.assistant("" if hidden else answers[0])),
            source.name,
            "Apache-2.0",
            {"hidden": hidden, "answers": answers, "number": number},
        )


def submitted(sample: Sample, answer: str) -> dict[str, Any]:
    """What the challenge's server takes (rrc.cvc.uab.es)."""
    return {"questionId": sample.meta["number"], "answer": answer.strip()}


def write(root: Path, folder: str, rows: Sequence[tuple[str, list[str], bytes]]) -> None:
    """Questions, answers and pages as both splits have them; the test one without answers."""
    for split in SPLITS:
        told = [
            {
                "questionId": str(number),
                "question": question,
                "answers": answers if split == "validation" else None,
                "image": drawn.cell(image),
            }
            for number, (question, answers, image) in enumerate(rows)
        ]
        write_parquet(root / VALIDATION.name / folder / f"{split}-00000-of-00001.parquet", told)


def mini(root: Path) -> None:
    letter = drawn.page("Berlin, 7 May 1931", "Dear Mr. Hansen,", "we send 40 chairs.")
    bill = drawn.page("INVOICE 2041", "Apples   12.50", "Total     19.00")
    rows = [
        ("Who is the letter to?", ["Mr. Hansen", "Hansen"], letter),
        ("What is the number of the invoice?", ["2041"], bill),
        ("What is the total?", ["19.00", "19"], bill),
    ]
    write(root, "DocVQA", rows)


benchmark = Benchmark(
    name="docvqa",
    title="DocVQA",
    modality="vision",
    rows=(Row("Table 1", "DocVQA (test)", {"hidden": False}),),
    sources=(VALIDATION,),
    load=load,
    mini=mini,
    scorer=vqa.anls,
    submits=submitted,
    status="server-scored",
    note="ours: the validation split; the report's: the test split, scored by the challenge's server",
)
