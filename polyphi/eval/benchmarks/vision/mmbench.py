"""MMBench (report, Table 1): 1,164 questions with options, each asked once for every rotation of its options.

The report's row is taken for plain accuracy over the unrotated ones, which its height speaks for [ours]; beside it
stands circular accuracy, where a question is right if it is under every rotation.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.eval import vqa
from polyphi.eval.benchmark import Benchmark, Row, Score
from polyphi.eval.sources import Data, Source, image_of

SOURCE = Source(
    "MMBench",
    ("MMBench_DEV_EN.tsv",),
    "OpenCompass: the address that VLMEvalKit has for MMBench_DEV_EN in vlmeval/dataset/image_mcq.py",
    fields=("index", "image", "question", "hint", "A", "B", "C", "D", "answer", "category"),
    rows=4329,
    hub=False,
    quoted=True,
    licence="Apache-2.0",
)
ROTATED = 1_000_000
"""The i-th rotation of a question has its index and i times this."""
SHORTEST = 64
"""Characters that an image in base64 exceeds; a shorter one is the index of the row that has it."""


def load(data: Data) -> Iterator[Sample]:
    images: dict[str, str] = {}
    for row in data.rows(SOURCE):
        image = images[row["image"]] if len(row["image"]) <= SHORTEST else row["image"]
        number = int(row["index"])
        if number < ROTATED:
            images[row["index"]] = image
        options = [row[a] for a in "ABCD" if row[a]]
        hint = f"{row['hint']}\n" if row["hint"] not in ("", "nan") else ""
        text = vqa.with_options(hint + row["question"], options)
        meta = {
            "question": number % ROTATED,
            "rotation": number // ROTATED,
            "options": options,
            "category": row["category"],
        }
        prompt = vqa.ask(text, [image_of(image)], vqa.CHOOSE)
        yield SOURCE.sample(f"mmbench-{number}", prompt, row["answer"], meta)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    """Each by itself; and the part `circular`, of questions that have been asked under as many rotations as they have
    options."""
    scores = [vqa.letter(answers[-1] if answers else "", sample) for answers, sample in pairs]
    passes: dict[int, list[float]] = defaultdict(list)
    for score, (_, sample) in zip(scores, pairs, strict=True):
        passes[sample.meta["question"]].append(score.value)
    result = []
    for score, (_, sample) in zip(scores, pairs, strict=True):
        own = passes[sample.meta["question"]]
        circular = {"circular": min(own)} if len(own) == len(sample.meta["options"]) else {}
        result.append(replace(score, parts={**score.parts, **circular}))
    return result


benchmark = Benchmark(
    name="mmbench",
    title="MMBench",
    modality="vision",
    rows=(
        Row("Table 1", "MMBench (dev-en)", {"rotation": 0}),
        Row("", "MMBench, circular", {"rotation": 0}, part="circular"),
        Row("", "MMBench, every rotation by itself"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
)
