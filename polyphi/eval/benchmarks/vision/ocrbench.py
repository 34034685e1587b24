"""OCRBench (report, Table 1): 1,000 images of text, from signs to handwritten formulas. The report's 84.4 is a tenth
of the points out of 1,000, so per cent."""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row, Score
from polyphi.eval.sources import Data, Source, image_of
from polyphi.messages import Message

SOURCE = Source(
    "echo840/OCRBench",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("dataset", "question", "question_type", "answer", "image"),
    rows=1000,
    licence="MIT",
)
FORMULAS = "HME100k"


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        answers = [str(answer) for answer in row["answer"]]
        prompt = Message.user(image_of(row["image"]), row["question"])
        yield SOURCE.sample(
            f"ocrbench-{number}",
            prompt,
            answers[0],
            {"dataset": row["dataset"], "kind": row["question_type"], "answers": answers},
        )


def contains(answer: str, sample: Sample) -> Score:
    """An accepted answer stands in it, without regard to case; in formulas to spaces, but not to case (OCRBench's own
    rule, generous by itself)."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        formula = sample.meta["dataset"] == FORMULAS
        return text.replace(" ", "") if formula else text.lower()

    text_of_answer, accepted = (
        plain(answer),
        [plain(reference) for reference in sample.meta["answers"]],
    )
    return Score(
        float(any(w != "" and w in text_of_answer for w in accepted)), text_of_answer[:1000]
    )


benchmark = Benchmark(
    name="ocrbench",
    title="OCRBench",
    modality="vision",
    rows=(Row("Table 1", "OCRBench"),),
    sources=(SOURCE,),
    load=load,
    scorer=contains,
    max_tokens=128,
)
