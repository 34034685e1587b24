"""What the built-in generators of corpora give at a size: rows, tokens, crops of images, frames, seconds of audio.

    python -m experiments.curation.capacities WORK nano full  # writes polyphi_recipe/corpora/capacities.json

prints a table of each size (docs/curation_numbers.md has that of full), and writes the rows and tokens that the error
of a recipe without data names (recipe.py). `SAMPLES` rows of each corpus are made, without its steps and without
models, in the folder WORK, and those of `FINITE` are counted to their end. Documents of full contexts are built with
their steps, because these remove a part of each. Texts are counted in the public vocabulary, audio at 12.5 tokens per
second. A size takes about three minutes of a core.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.media.media import audio_size, image_size
from polyphi.processing import image
from polyphi.processing.published_vocabulary import from_ranks
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import cache_folder
from polyphi.train.options import TrainOptions
from polyphi.types.messages import media
from polyphi.types.parts import Audio, Image
from polyphi_recipe.corpora import capacities
from polyphi_recipe.corpora.lookup import find_corpus
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.pipeline.corpus import build
from polyphi_recipe.raw.packages import o200k_base
from polyphi_recipe.stages import sizes

SAMPLES = 200
FINITE = ("documents", "code", "long_documents", "summaries")
"""Corpora whose generators end; the others draw again and again, or ask a model."""
ROWS = 1_000_000
TEST_ROWS = 1_000
"""Held-out rows of a corpus at full."""


@dataclass
class Measurement:
    """The rows of a corpus: tokens, images and seconds of audio of each, crops of each image."""

    tokens: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    crops: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def line(self, name: str) -> str:
        """Return a line of the table."""
        large = "-"
        if self.crops:
            shares = [sum(c >= least for c in self.crops) / len(self.crops) for least in (16, 36)]
            large = " / ".join(f"{share:.1%}" for share in shares)
        cells = [spread(self.images), spread(self.crops), large, spread(self.seconds)]
        return f"| {name} | {len(self.tokens):,} | {' | '.join([*cells, spread(self.tokens)])} |"


def spread(values: Sequence[float]) -> str:
    """Return the least value, the median and the largest; "-" if all are 0."""
    if not any(values):
        return "-"
    three = [float(np.percentile(values, at)) for at in (0, 50, 100)]
    return " / ".join(f"{x:,.0f}" if x >= 10 or x.is_integer() else f"{x:.1f}" for x in three)


def measured(rows: Iterable[Sample], run: Run, tokenizer: Tokenizer) -> Measurement:
    """Measure rows as the stages of a size read them."""
    result, vision = Measurement(), run.recipe.size.model.vision
    assert vision is not None
    for row in rows:
        plans = [
            image.plan(*image_size(part.source), crop_size=vision.crop_size, max_crops=36)
            for part in media(row.messages, Image)
        ]
        clips = [audio_size(part.source) for part in media(row.messages, Audio)]
        seconds = sum(count / rate for count, rate in clips)
        text = sum(len(tokenizer.encode(message.text)) for message in row.messages)
        result.tokens.append(text + sum(plan.tokens for plan in plans) + 12.5 * seconds)
        result.images.append(len(plans))
        result.crops += [plan.crop_rows * plan.crop_cols for plan in plans]
        result.seconds.append(seconds)
    return result


def packed_documents(run: Run) -> Shards:
    """Build the documents of full contexts, after the held-out rows that they are compared with."""
    for name in ("summaries", "documents", "long_documents"):
        corpus = find_corpus(name)
        rows = {"test": TEST_ROWS, **({"train": ROWS} if name == "long_documents" else {})}
        build(corpus, replace(run.corpora.work(corpus), rows=rows))
    return Shards(run.folder.data / "long_documents/train")


def main(folder: Path, names: Sequence[str]) -> None:
    """Measure all corpora at sizes."""
    path = Path(capacities.__file__).with_suffix(".json")
    result = json.loads(path.read_text())
    for size in names:
        run = Run(size, folder / size, options=TrainOptions(seed=0))
        tokenizer = from_ranks(o200k_base(cache_folder()))
        result[size] = {}
        print(f"{size}\n| corpus | rows | images | crops | >= 16 / 36 | seconds | tokens |")
        print("|---|---|---|---|---|---|---|")
        for name in sizes.CORPORA:
            corpus, rows = find_corpus(name), None
            work = replace(
                run.corpora.work(corpus),
                rows={"train": SAMPLES},
                models={},
                report=lambda line: None,
            )
            if name == "long_documents" and work.document_tokens is not None:
                samples: Sequence[Sample] = packed_documents(run)
                rows = len(samples)
            elif name in FINITE:
                every = [s for _, s in corpus.build(replace(work, rows={"train": ROWS}))]
                samples, rows = every[:: max(1, len(every) // SAMPLES)], len(every)
            else:
                samples = [s for _, s in corpus.build(work)]
            measurement = measured(samples, run, tokenizer)
            if name in ("image_qa", "multi_image"):  # corpora of spoken questions read them
                shutil.rmtree(run.folder.data / name, ignore_errors=True)
                shards.write(run.folder.data / name / "train", samples, pipeline="capacities")
            mean = sum(measurement.tokens) / len(measurement.tokens)
            result[size][name] = {"rows": rows, "tokens": round(mean, 1)}
            print(measurement.line(name), flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
