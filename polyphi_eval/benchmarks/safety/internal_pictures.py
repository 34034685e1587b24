"""The report's internal benchmark of images and text (Table 15): its data are private.

Users with similar data supply DIR/internal-pictures/prompts.jsonl.
"""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.image_safety import JUDGING, image_prompt
from polyphi_eval.severity import REFUSED
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "internal-pictures",
    ("prompts.jsonl",),
    'its owners only; you may supply lines of {"image": a path, "prompt", "category", "reference"}',
    fields=("image", "prompt"),
    hub=False,
    licence="as its owner says",
)


def load(data: Data) -> Iterator[Sample]:
    folder = data.folder(SOURCE)
    for number, row in enumerate(data.rows(SOURCE)):
        yield SOURCE.sample(
            f"internal-{number}",
            image_prompt(row["prompt"], image_of(row["image"], folder)),
            row.get("reference") or REFUSED,
            {"question": row["prompt"], "about": row.get("category") or "harm"},
        )


benchmark = Benchmark(
    name="internal_pictures",
    title="Internal pictures and text",
    modality="safety",
    rows=(TableRow("Table 15", "Internal (private)", {}, "mean", "safety"),),
    sources=(SOURCE,),
    load=load,
    judging=JUDGING,
    max_tokens=256,
    status="private",
    note="the report's data are private",
)
