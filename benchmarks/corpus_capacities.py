"""How much the built-in generators of corpora give, for the error of a recipe that needs data (recipe.py).

    python benchmarks/corpus_capacities.py runs/nano          # writes polyphi_recipe/corpora/capacities.json

Tokens are estimated: a quarter of the characters, 273 for an image (one crop), 12.5 for a second of audio. A generator
is run until it ends, or for `SECONDS`, after which it counts as one without end. Takes some minutes.
"""

import json
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample, Shards
from polyphi.messages import Audio, Image, media
from polyphi.planning import sizes
from polyphi.processing.media import audio_size
from polyphi.train.options import TrainOptions
from polyphi_recipe.corpora import capacities
from polyphi_recipe.corpora.lookup import find_corpus
from polyphi_recipe.graph import Run

SECONDS = 60
ROWS = 1_000_000
SAMPLES = 400
"""Rows of a split whose tokens are estimated."""
ENDLESS = (
    "reasoning_pairs",
    "asr",
    "ast",
    "sqa",
    "audio_understanding",
    "audio_safety",
    "vision_speech",
)
"""Corpora that draw again and again, or ask a model."""


def tokens(sample: Sample) -> float:
    """The estimated tokens of a sample."""
    characters = sum(len(m.text) for m in sample.messages)
    seconds = 0.0
    for audio in media(sample.messages, Audio):
        count, rate = audio_size(audio.source)
        seconds += count / rate
    return characters / 4 + 273 * len(media(sample.messages, Image)) + 12.5 * seconds


def rows(run: Run, name: str) -> int | None:
    """All training rows of a generator; None if it doesn't end within `SECONDS`."""
    corpus, count, start = find_corpus(name), 0, time.process_time()
    if name in ENDLESS or corpus.fresh is not None:
        return None
    work = replace(run.work(corpus), rows={"train": ROWS})
    for _ in islice(corpus.build(work), ROWS):
        count += 1
        if time.process_time() - start > SECONDS:
            return None
    return None if count == ROWS else count


def main(folder: Path) -> None:
    """Measure all corpora of a run."""
    run = Run("nano", folder, options=TrainOptions(seed=0))
    result: dict[str, dict[str, float | None]] = {}
    for name in sizes.CORPORA:
        split = Shards(folder / "data" / name / "train")
        measured = [tokens(split[i]) for i in range(0, len(split), max(1, len(split) // SAMPLES))]
        mean = round(sum(measured) / len(measured), 1)
        result[name] = {"rows": rows(run, name), "tokens": mean}
        print(name, result[name], flush=True)
    path = Path(capacities.__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
