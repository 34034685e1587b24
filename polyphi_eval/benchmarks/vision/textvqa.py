"""TextVQA (report, Table 1): 5,000 questions about words in photographs, each answered by ten people; VQA accuracy.
Prompts don't have the text that OCR found (`ocr_tokens`)."""

from collections import Counter
from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "lmms-lab/textvqa",
    ("data/validation-*.parquet",),
    "the Hub",
    fields=("question_id", "question", "answers", "image"),
    rows=5000,
    licence="CC-BY-4.0",
)


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        answers = [str(answer) for answer in row["answers"]]
        ((common, _),) = Counter(answers).most_common(1)
        prompt = vqa.ask(row["question"], [image_of(row["image"])], vqa.SHORT)
        yield SOURCE.sample(f"textvqa-{row['question_id']}", prompt, common, {"answers": answers})


benchmark = Benchmark(
    name="textvqa",
    title="TextVQA",
    modality="vision",
    rows=(TableRow("Table 1", "TextVQA (val)"),),
    sources=(SOURCE,),
    load=load,
    scorer=vqa.vqa_accuracy,
)
