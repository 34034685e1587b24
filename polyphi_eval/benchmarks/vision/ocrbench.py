"""OCRBench (report, Table 1): 1,000 images of text, from signs to handwritten formulas. The report's 84.4 is
per cent: the points out of 1,000, divided by ten."""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
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
    """Whether the answer contains an accepted one, ignoring case; in formulas ignoring spaces, but not case (OCRBench's
    own rule, already lenient)."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        formula = sample.meta["dataset"] == FORMULAS
        return text.replace(" ", "") if formula else text.lower()

    text, accepted = plain(answer), [plain(reference) for reference in sample.meta["answers"]]
    return Score(float(any(a != "" and a in text for a in accepted)), text[:1000])


benchmark = Benchmark(
    name="ocrbench",
    title="OCRBench",
    modality="vision",
    rows=(TableRow("Table 1", "OCRBench"),),
    sources=(SOURCE,),
    load=load,
    scorer=contains,
    max_tokens=128,
)
