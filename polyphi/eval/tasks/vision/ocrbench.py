"""OCRBench (report, Table 1): 1,000 pictures of text, from signs to handwritten formulas. The report's 84.4 is a tenth
of the points out of 1,000, so per cent."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, write_parquet
from polyphi.eval.task import Score
from polyphi.messages import Message

SOURCE = Source(
    "echo840/OCRBench",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("dataset", "question", "question_type", "answer", "image"),
    rows=1000,
)
FORMULAS = "HME100k"


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        answers = [str(answer) for answer in row["answer"]]
        prompt = Message.user(picture(row["image"]), row["question"])
        yield Sample(
            f"ocrbench-{number}",
            (prompt, Message.assistant(answers[0])),
            SOURCE.name,
            "MIT",
            {"dataset": row["dataset"], "kind": row["question_type"], "answers": answers},
        )


def contains(answer: str, sample: Sample) -> Score:
    """An accepted answer stands in it, without regard to case; in formulas to spaces, but not to case (OCRBench's own
    rule, generous by itself)."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        formula = sample.meta["dataset"] == FORMULAS
        return text.replace(" ", "") if formula else text.lower()

    said, wanted = plain(answer), [plain(reference) for reference in sample.meta["answers"]]
    return Score(float(any(w != "" and w in said for w in wanted)), said[:1000])


def mini(root: Path) -> None:
    asked = [
        ("IIIT5K", "Regular Text Recognition", "what is written in the image?", "house"),
        ("SROIE", "Key Information Extraction", "what is the total?", "19.00"),
        (
            FORMULAS,
            "Handwritten Mathematical Expression Recognition",
            "Please write out the expression of the formula in the image using LaTeX format.",
            "x + y = 2",
        ),
    ]
    rows = [
        {
            "dataset": dataset,
            "question_type": kind,
            "question": question,
            "answer": [answer],
            "image": drawn.cell(drawn.page(answer)),
        }
        for dataset, kind, question, answer in asked
    ]
    write_parquet(root / SOURCE.name / "data/test-00000-of-00001.parquet", rows)


benchmark = Benchmark(
    name="ocrbench",
    title="OCRBench",
    modality="vision",
    rows=(Row("Table 1", "OCRBench"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=contains,
    max_tokens=128,
)
