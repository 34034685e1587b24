"""InfoVQA (report, Table 1): questions about infographics; ANLS.

As for DocVQA, the report's number is of the 3,288 test questions, which a server scores, and ours of the 2,801
validation ones; `infovqa.submission.json` is for that server.
"""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data
from polyphi.eval.tasks.vision import docvqa

FOLDER = "InfographicVQA"
VALIDATION = docvqa.source(FOLDER, "validation", 2801)
TEST = docvqa.source(FOLDER, "test", 3288)


def load(data: Data) -> Iterator[Sample]:
    yield from docvqa.questions(data, VALIDATION, hidden=False)
    if data.has(TEST):
        yield from docvqa.questions(data, TEST, hidden=True)


def mini(root: Path) -> None:
    chart = drawn.bars({"red": 4, "green": 9, "blue": 2})
    rows = [
        ("Which colour has the highest bar?", ["green"], chart),
        ("How high is the blue bar?", ["2", "two"], chart),
        (
            "Where do most storks spend the winter?",
            ["Africa"],
            drawn.page("STORKS", "8 of 10: Africa"),
        ),
    ]
    docvqa.write(root, FOLDER, rows)


benchmark = Benchmark(
    name="infovqa",
    title="InfoVQA",
    modality="vision",
    rows=(Row("Table 1", "InfoVQA (test)", {"hidden": False}),),
    sources=(VALIDATION,),
    load=load,
    mini=mini,
    scorer=vqa.anls,
    submits=docvqa.submitted,
    status=docvqa.benchmark.status,
    note=docvqa.benchmark.note,
)
