"""POPE (report, Table 1): whether an object is in a photograph; 3,000 questions each about random objects, popular
ones, and ones that often occur together with the others.

The report has one number, which is taken as the mean of the three F1 of "yes", as in LLaVA-1.5 [ours]; accuracy has a
separate row.
"""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "lmms-lab/POPE",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question_id", "question", "answer", "category", "image"),
    rows=9000,
    licence="MIT",
)
CATEGORIES = ("random", "popular", "adversarial")


def load(data: Data) -> Iterator[Sample]:
    for number, row in enumerate(data.rows(SOURCE)):
        prompt = vqa.ask(row["question"], [image_of(row["image"])], vqa.SHORT)
        answer = row["answer"].strip().lower()
        yield SOURCE.sample(f"pope-{number}", prompt, answer, {"category": row["category"]})


def score(answer: str, sample: Sample) -> Score:
    """Whether the first word is the reference; the parts are for the F1 of "yes". Lenient: the first yes or no."""
    words = vqa.plain(answer).split()
    first = words[0] if words and words[0] in ("yes", "no") else ""
    lenient = next((word for word in words if word in ("yes", "no")), "")
    yes = sample.answer == "yes"
    counts = {
        "tp": float(yes and first == "yes"),
        "fp": float(not yes and first == "yes"),
        "fn": float(yes and first != "yes"),
    }
    return Score(
        float(first == sample.answer), first, {**counts, LENIENT: float(lenient == sample.answer)}
    )


benchmark = Benchmark(
    name="pope",
    title="POPE",
    modality="vision",
    rows=(
        TableRow("Table 1", "POPE (test)", metric="f1", by="category"),
        TableRow("", "POPE, accuracy"),
        *(TableRow("", f"POPE, F1, {c} things", {"category": c}, metric="f1") for c in CATEGORIES),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=score,
)
