"""DocVQA and InfoVQA (report, Table 1): questions about scanned pages, and about infographics; ANLS.

The report's numbers are of the 5,188 and 3,288 test questions, whose answers only the challenge's server has. Ours are
of the 5,349 and 2,801 validation questions; if DIR has the test files too, answers to them go into
`docvqa.submission.json` and `infovqa.submission.json` for that server.
"""

from collections.abc import Iterator
from typing import Any

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of


def docvqa(name: str, title: str, folder: str, counts: tuple[int, int]) -> Benchmark:
    """Return a benchmark; `counts` are the numbers of questions in the validation and the test split."""
    validation, test = (
        BenchmarkSource(
            "lmms-lab/DocVQA",
            (f"{folder}/{split}-*.parquet",),
            "the Hub",
            fields=("questionId", "question", "answers", "image"),
            rows=count,
            licence="Apache-2.0",
        )
        for split, count in zip(("validation", "test"), counts, strict=True)
    )

    def load(data: Data) -> Iterator[Sample]:
        yield from _questions(data, validation, hidden=False)
        if data.has(test):
            yield from _questions(data, test, hidden=True)

    return Benchmark(
        name=name,
        title=title,
        modality="vision",
        rows=(TableRow("Table 1", f"{title} (test)", {"hidden": False}),),
        sources=(validation,),
        load=load,
        scorer=vqa.anls,
        submission=submission,
        status="server-scored",
        note="ours: the validation split; the report's: the test split, scored by the challenge's server",
    )


def _questions(data: Data, source: BenchmarkSource, hidden: bool) -> Iterator[Sample]:
    """The questions of a split; test questions have no answers."""
    for row in data.rows(source):
        answers = [] if hidden else list(row["answers"])
        prompt = vqa.ask(row["question"], [image_of(row["image"])], vqa.SHORT)
        number = int(row["questionId"])
        yield source.sample(
            f"{source.files[0].partition('-')[0]}/{number}",
            prompt,
            "" if hidden else answers[0],
            {"hidden": hidden, "answers": answers, "number": number},
        )


def submission(sample: Sample, answer: str) -> dict[str, Any]:
    """An entry of the file for the challenge's server (rrc.cvc.uab.es)."""
    return {"questionId": sample.meta["number"], "answer": answer.strip()}


benchmarks = (
    docvqa("docvqa", "DocVQA", "DocVQA", (5349, 5188)),
    docvqa("infovqa", "InfoVQA", "InfographicVQA", (2801, 3288)),
)
