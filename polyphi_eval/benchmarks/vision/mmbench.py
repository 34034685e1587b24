"""MMBench (report, Table 1): 1,164 questions with options, each repeated for every rotation of its options.

The report's row is taken as plain accuracy over the unrotated ones, which its high number suggests [ours]. Circular
accuracy, where a question is right if it is right under every rotation, has a separate row.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "MMBench",
    ("MMBench_DEV_EN.tsv",),
    "OpenCompass: the address that VLMEvalKit has for MMBench_DEV_EN in vlmeval/dataset/image_mcq.py",
    fields=("index", "image", "question", "hint", "A", "B", "C", "D", "answer", "category"),
    rows=4329,
    hub=False,
    quoted=True,
    licence="Apache-2.0",
)
ROTATION_STEP = 1_000_000
"""The i-th rotation of a question has its index plus i times this."""
MAX_INDEX_CHARS = 64
"""A longer `image` is base64; otherwise it is the index of the row that has the image."""


def load(data: Data) -> Iterator[Sample]:
    images: dict[str, str] = {}
    for row in data.rows(SOURCE):
        image = images[row["image"]] if len(row["image"]) <= MAX_INDEX_CHARS else row["image"]
        number = int(row["index"])
        if number < ROTATION_STEP:
            images[row["index"]] = image
        options = [row[a] for a in "ABCD" if row[a]]
        hint = f"{row['hint']}\n" if row["hint"] not in ("", "nan") else ""
        text = vqa.with_options(hint + row["question"], options)
        meta = {
            "question": number % ROTATION_STEP,
            "rotation": number // ROTATION_STEP,
            "options": options,
            "category": row["category"],
        }
        prompt = vqa.ask(text, [image_of(image)], vqa.CHOOSE)
        yield SOURCE.sample(f"mmbench-{number}", prompt, row["answer"], meta)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    """Score each sample; a question with as many rotations as options also has the part `circular`."""
    scores = [vqa.letter(answers[-1] if answers else "", sample) for answers, sample in pairs]
    values: dict[int, list[float]] = defaultdict(list)
    for score, (_, sample) in zip(scores, pairs, strict=True):
        values[sample.meta["question"]].append(score.value)
    result = []
    for score, (_, sample) in zip(scores, pairs, strict=True):
        points = values[sample.meta["question"]]
        circular = {"circular": min(points)} if len(points) == len(sample.meta["options"]) else {}
        result.append(replace(score, parts={**score.parts, **circular}))
    return result


benchmark = Benchmark(
    name="mmbench",
    title="MMBench",
    modality="vision",
    rows=(
        TableRow("Table 1", "MMBench (dev-en)", {"rotation": 0}),
        TableRow("", "MMBench, circular", {"rotation": 0}, part="circular"),
        TableRow("", "MMBench, every rotation by itself"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
)
